//! The Debian package, by dpkg-deb.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    About,
    layout::{CONFIGURATION, Tree, files},
    template,
    workshop::Workshop,
};
use crate::apt;

/// dpkg runs them; see `dist/packaging/deb`.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

const DOC: &str = "usr/share/doc/nlmfo";

/// Makes the package of a tree, which it completes with what only Debian wants.
pub fn make(tree: &Tree, about: &About, to: &Path) -> Result<PathBuf> {
    let version = format!("{}-1", about.version);
    let date = apt::run(
        Command::new("date")
            .args(["-u", "-R", "-d"])
            .arg(format!("@{}", about.epoch)),
    )?;
    let changelog = template(
        "deb/changelog",
        &[("VERSION", &version), ("DATE", date.trim())],
    )?;
    tree.write(
        &format!("{DOC}/changelog.Debian"),
        changelog.as_bytes(),
        0o644,
    )?;
    let news = tree.root.join(DOC).join("CHANGELOG.md");
    fs::rename(&news, tree.root.join(DOC).join("changelog"))
        .with_context(|| format!("rename {}", news.display()))?;
    for file in ["changelog", "changelog.Debian"] {
        apt::run(
            Command::new("gzip")
                .arg("-9n")
                .arg(tree.root.join(DOC).join(file)),
        )?;
    }
    tree.compress("usr/share/man")?;
    let copyright = template("deb/copyright", &[])?;
    tree.write(&format!("{DOC}/copyright"), copyright.as_bytes(), 0o644)?;
    let overrides = template("deb/lintian-overrides", &[])?;
    tree.write(
        "usr/share/lintian/overrides/nlmfo",
        overrides.as_bytes(),
        0o644,
    )?;

    let paths = tree.paths()?;
    let size: u64 = files(&tree.root)?
        .iter()
        .map(|file| Ok(fs::symlink_metadata(file)?.len().div_ceil(1024)))
        .sum::<Result<u64>>()?;
    let mut depends = format!("libc6 (>= {})", about.needs.glibc);
    if about
        .needs
        .libraries
        .iter()
        .any(|name| name == "libgcc_s.so.1")
    {
        depends += ", libgcc-s1";
    }
    let control = template(
        "deb/control",
        &[
            ("VERSION", &version),
            ("ARCH", about.arch.debian()),
            ("DEPENDS", &depends),
            ("SIZE", &size.to_string()),
        ],
    )?;
    let regular = |path: &&String| !tree.root.join(path).is_symlink();
    let sums = apt::run(
        Command::new("md5sum")
            .current_dir(&tree.root)
            .args(paths.iter().filter(regular)),
    )?;
    let sums: String = (sums.lines())
        .filter(|line| !line.contains(&format!("  {CONFIGURATION}")))
        .flat_map(|line| [line, "\n"])
        .collect();
    let conffiles: String = (paths.iter())
        .filter(|path| path.starts_with(CONFIGURATION))
        .map(|path| format!("/{path}\n"))
        .collect();
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)?;
    tree.write("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
    tree.write("DEBIAN/conffiles", conffiles.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        let text = template(&format!("deb/{script}"), &[])?;
        tree.write(&format!("DEBIAN/{script}"), text.as_bytes(), 0o755)?;
    }
    tree.settle(about.epoch)?;
    let path = to.join(format!("nlmfo_{version}_{}.deb", about.arch));
    apt::run(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([&tree.root, &path])
            .env("SOURCE_DATE_EPOCH", about.epoch.to_string()),
    )?;
    Ok(path)
}

/// lintian finds nothing that is not overridden, with its reason, in the package itself.
pub fn check(workshop: &Workshop, deb: &Path) -> Result<()> {
    let name = deb.file_name().unwrap_or_default().to_string_lossy();
    fs::copy(deb, workshop.work().join(&*name)).context("copy the package")?;
    let output = workshop
        .command("lintian")
        .args([
            "--fail-on",
            "error,warning,info",
            "--display-info",
            "--allow-root",
        ])
        .arg(workshop.inside(&name))
        .output()
        .context("start lintian")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "lintian finds faults in {name} ({}):\n{said}{errors}",
        output.status
    );
    Ok(())
}
