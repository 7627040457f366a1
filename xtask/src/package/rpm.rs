//! The rpm, by rpmbuild.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    About,
    layout::{CONFIGURATION, Tree},
    template,
    workshop::Workshop,
};
use crate::{apt, cache::workspace_root};

/// Makes the package of a tree, which lies in the workshop.
pub fn make(workshop: &Workshop, tree: &Tree, about: &About, to: &Path) -> Result<PathBuf> {
    for licence in ["LICENSE-MIT", "LICENSE-APACHE", "nlmfo-ebpf/LICENSE-GPL2"] {
        let from = workspace_root().join(licence);
        let file = from.file_name().unwrap_or_default().to_string_lossy();
        tree.install(&from, &format!("usr/share/licenses/nlmfo/{file}"), 0o644)?;
    }
    // Where zsh looks on distributions with rpm.
    let root = &tree.root;
    fs::create_dir_all(root.join("usr/share/zsh/site-functions"))?;
    fs::rename(
        root.join("usr/share/zsh/vendor-completions/_nlmfo"),
        root.join("usr/share/zsh/site-functions/_nlmfo"),
    )?;
    fs::remove_dir(root.join("usr/share/zsh/vendor-completions"))?;
    tree.compress("usr/share/man")?;
    tree.settle(about.epoch)?;

    let listed: String = (tree.paths()?.iter())
        .map(|path| match path {
            _ if path.starts_with(CONFIGURATION) => format!("%config(noreplace) /{path}\n"),
            _ if path.starts_with("usr/share/doc/") => format!("%doc /{path}\n"),
            _ if path.starts_with("usr/share/licenses/") => format!("%license /{path}\n"),
            _ => format!("/{path}\n"),
        })
        .collect();
    let tree_inside = workshop.inside(&root.file_name().unwrap_or_default().to_string_lossy());
    let spec = template(
        "rpm/nlmfo.spec",
        &[
            ("VERSION", about.version),
            ("TREE", &tree_inside.to_string_lossy()),
            ("GLIBC", &about.needs.glibc.to_string()),
            ("FILES", &listed),
        ],
    )?;
    fs::write(workshop.work().join("nlmfo.spec"), spec)?;
    let machine = about.arch.machine();
    let top = workshop.inside("rpmbuild");
    let mut rpmbuild = workshop.command("rpmbuild");
    rpmbuild.env("SOURCE_DATE_EPOCH", about.epoch.to_string());
    for (name, value) in [
        ("_topdir", top.to_string_lossy().as_ref()),
        ("_buildhost", "localhost"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
    ] {
        rpmbuild.arg("--define").arg(format!("{name} {value}"));
    }
    apt::run(
        rpmbuild
            .args(["--quiet", "--target", machine, "-bb"])
            .arg(workshop.inside("nlmfo.spec")),
    )?;
    let name = format!("nlmfo-{}-1.{machine}.rpm", about.version);
    let path = to.join(&name);
    let built = workshop
        .work()
        .join("rpmbuild/RPMS")
        .join(machine)
        .join(&name);
    fs::copy(&built, &path).with_context(|| format!("copy {}", built.display()))?;
    Ok(path)
}

/// rpmlint finds nothing that `dist/packaging/rpm/rpmlint.toml` does not filter, with its reason.
pub fn check(workshop: &Workshop, rpm: &Path) -> Result<()> {
    let name = rpm.file_name().unwrap_or_default().to_string_lossy();
    fs::copy(rpm, workshop.work().join(&*name)).context("copy the package")?;
    let filters = template("rpm/rpmlint.toml", &[])?;
    fs::write(workshop.work().join("rpmlint.toml"), filters)?;
    let output = workshop
        .command("rpmlint")
        .arg("--config")
        .arg(workshop.inside("rpmlint.toml"))
        .arg(workshop.inside(&name))
        .output()
        .context("start rpmlint")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("0 errors, 0 warnings"),
        "rpmlint finds faults in {name} ({}):\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
