//! `cargo xtask picture`: draws the pictures in docs from recordings of real failovers.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    arch::Arch,
    build,
    cache::{Cache, workspace_root},
    demo,
    lab::{KernelName, Lab, Run, Stream},
};

const DEADLINE: Duration = Duration::from_mins(5);

/// A picture, and its recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Picture {
    /// `nlmfo watch` on one node
    Watch,
    /// A move between two nodes, as `cargo xtask demo --nfsv4` shows it
    Move,
}

#[derive(Debug, Args)]
pub struct PictureArgs {
    /// Make a new recording for this picture in the lab first
    #[arg(long, value_enum, value_name = "PICTURE")]
    record: Vec<Picture>,
    /// Kernel to record on, named as for `lab run` [default: bookworm-security for watch,
    /// trixie-security for move]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<KernelName>,
}

impl Picture {
    const ALL: [Picture; 2] = [Picture::Watch, Picture::Move];

    /// Of the example that draws it, and of its files in docs.
    fn name(self) -> &'static str {
        match self {
            Picture::Watch => "watch",
            Picture::Move => "move",
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Picture::Watch => "bookworm-security",
            // 6.1's lockd cannot move one of several servers (docs/nfsv4.md).
            Picture::Move => "trixie-security",
        }
    }
}

/// Writes the pictures, and the recordings that are requested.
pub fn execute(cache: &Cache, args: &PictureArgs) -> Result<ExitCode> {
    let programs = build::workspace(cache, Arch::HERE, false)?;
    for picture in Picture::ALL {
        let name = picture.name();
        let docs = workspace_root().join("docs");
        let recording = docs.join(format!("{name}.jsonl"));
        let drawing = docs.join(format!("{name}.svg"));
        if args.record.contains(&picture) {
            let kernel = match &args.kernel {
                Some(kernel) => kernel.clone(),
                None => picture.kernel().parse()?,
            };
            record(&programs, picture, &kernel, &recording)?;
        }
        let status = Command::new(programs.join("examples/picture"))
            .arg(name)
            .args([&recording, &drawing])
            .status()
            .context("start the example that draws")?;
        ensure!(status.success(), "drawing the picture failed ({status})");
        eprintln!("{}", drawing.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn record(programs: &Path, picture: Picture, kernel: &KernelName, recording: &Path) -> Result<()> {
    let lab = Lab::open(Arch::HERE)?;
    if picture == Picture::Move {
        let directory = tempfile::tempdir().context("a directory for the recording")?;
        let status = demo::moves(&lab, &lab.kernel(kernel)?, programs, Some(directory.path()))?;
        ensure!(status == 0, "the demo failed ({status})");
        let text = fs::read(directory.path().join(demo::RECORDING)).context("the recording")?;
        return fs::write(recording, text).with_context(|| recording.display().to_string());
    }
    let mut run = Run::new(lab.kernel(kernel)?, ["/lab-guest", "record"]);
    run.deadline = DEADLINE;
    run.files = ["nlmfo", "lab-guest"]
        .map(|program| (programs.join(program), format!("/{program}").into()))
        .into();
    let mut ticks = Vec::new();
    let outcome = lab.run(&run, &mut |stream, bytes| match stream {
        Stream::Stdout => ticks.extend_from_slice(bytes),
        // Only progress; nothing depends on it.
        Stream::Stderr => drop(io::stderr().lock().write_all(bytes)),
    })?;
    let status = outcome.status()?;
    ensure!(status == 0, "recording in the lab failed ({status})");
    fs::write(recording, ticks).with_context(|| recording.display().to_string())
}
