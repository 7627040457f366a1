//! The guest's whole root filesystem for one run: the shared layers, and one
//! with init, the command and the caller's files.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{layer::Layer, run::Run};

/// The layers one after the other, the run's own last, in a nameless file.
pub(super) fn concatenate(
    layers: &[PathBuf],
    describe: impl FnOnce(&mut Layer<&mut File>) -> Result<()>,
) -> Result<File> {
    let mut initrd = tempfile::tempfile().context("create the initramfs")?;
    for path in layers {
        let mut layer = File::open(path).with_context(|| format!("open {}", path.display()))?;
        io::copy(&mut layer, &mut initrd).with_context(|| format!("copy {}", path.display()))?;
    }
    let mut own = Layer::new(&mut initrd);
    describe(&mut own)?;
    own.finish()?;
    initrd.flush()?;
    initrd.rewind()?;
    Ok(initrd)
}

/// The run's own layer: init, the command, and the caller's files.
pub(super) fn describe<W: io::Write>(layer: &mut Layer<W>, run: &Run, end: &str) -> Result<()> {
    layer.directory("lab", 0o755, (0, 0))?;
    layer.file("lab/init", 0o755, include_bytes!("init.sh"))?;
    layer.file("lab/end", 0o644, end.as_bytes())?;
    let mut command = b"exec".to_vec();
    for word in &run.command {
        command.push(b' ');
        command.extend(quoted(word));
    }
    command.push(b'\n');
    layer.file("lab/command", 0o755, &command)?;
    let mut collect = Vec::new();
    for path in &run.collect {
        collect.extend(inside(path)?.as_bytes());
        collect.push(b'\n');
    }
    layer.file("lab/collect", 0o644, &collect)?;
    for (host, guest) in &run.files {
        let path = inside(guest)?;
        for (at, _) in path.match_indices('/') {
            // An existing directory keeps what is in it.
            layer.directory(&path[..at], 0o755, (0, 0))?;
        }
        let meta = fs::metadata(host).with_context(|| format!("read {}", host.display()))?;
        if meta.is_dir() {
            layer.directory(&path, 0o755, (0, 0))?;
            layer.tree(host, &path)?;
        } else {
            let contents = program(host)?;
            layer.file(&path, meta.permissions().mode() & 0o7777, &contents)?;
        }
    }
    Ok(())
}

/// An absolute guest path as layers name it. The top level's links into `/usr`
/// are followed: the kernel would replace a link by a directory of that name.
fn inside(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    let text = text
        .strip_prefix('/')
        .with_context(|| format!("{text}: give an absolute path of the guest"))?
        .trim_end_matches('/');
    ensure!(
        !text.is_empty() && !text.split('/').any(|part| matches!(part, "" | "." | "..")),
        "/{text} is not a plain path in the guest"
    );
    let (top, _) = text.split_once('/').unwrap_or((text, ""));
    Ok(match top {
        "bin" | "sbin" | "lib" | "lib64" => format!("usr/{text}"),
        _ => text.to_owned(),
    })
}

/// What a file holds; of an ELF file, without debug information, which a debug
/// build has tens of megabytes of: the guest's memory is dear, and filling it
/// under emulation takes seconds.
fn program(path: &Path) -> Result<Vec<u8>> {
    let contents = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if !contents.starts_with(b"\x7fELF") {
        return Ok(contents);
    }
    let stripped = tempfile::NamedTempFile::new()?;
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(stripped.path())
        .arg(path)
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(fs::read(stripped.path())?),
        // There are no binutils here, or they do not understand the file.
        _ => Ok(contents),
    }
}

/// Quotes a word for the shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => out.extend(b"'\\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_paths_are_plain_and_follow_the_merged_usr() {
        let inside = |path: &str| inside(Path::new(path)).ok();
        assert_eq!(inside("/bin/lk").as_deref(), Some("usr/bin/lk"));
        assert_eq!(inside("/share/a").as_deref(), Some("share/a"));
        assert_eq!(inside("/binary").as_deref(), Some("binary"));
        for bad in ["share/a", "/", "/a/../b", "/a//b"] {
            assert_eq!(inside(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_program_loses_only_its_debug_information() -> Result<()> {
        let own = std::env::current_exe()?;
        let whole = fs::metadata(&own)?.len();
        let lean = program(&own)?;
        assert!(lean.starts_with(b"\x7fELF"));
        assert!(u64::try_from(lean.len())? <= whole);
        let script = tempfile::NamedTempFile::new()?;
        fs::write(script.path(), "#!/bin/sh\n")?;
        assert_eq!(program(script.path())?, b"#!/bin/sh\n");
        Ok(())
    }

    #[test]
    fn words_reach_the_command_unchanged() {
        assert_eq!(quoted(OsStr::new("a b")), b"'a b'");
        assert_eq!(quoted(OsStr::new("it's $x")), b"'it'\\''s $x'");
    }
}
