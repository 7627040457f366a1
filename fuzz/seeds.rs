//! Writes the seeds to `fuzz/corpus/calls`, where `cargo fuzz run calls` looks.

use std::path::Path;
use std::{fs, io};

#[allow(dead_code, reason = "the property tests use the rest")]
#[path = "../nlmfo-common/tests/calls/model/mod.rs"]
mod model;

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/calls");
    fs::create_dir_all(&corpus)?;
    for (name, seed) in model::seeds::all() {
        fs::write(corpus.join(name), seed)?;
    }
    println!("{}", corpus.display());
    Ok(())
}
