//! The kernel's modules: which are loaded, and on disk, which could be.

use std::collections::HashMap;
use std::path::Path;

use procfs::{KernelModule, ProcResult};

/// The loaded modules by name.
///
/// # Errors
/// If `/proc/modules` cannot be read.
pub fn loaded() -> ProcResult<HashMap<String, KernelModule>> {
    procfs::modules()
}

const FOLDER: &str = "/lib/modules";

/// depmod's lists of what is there, a path to begin each line, and of what is built in.
const LISTS: [&str; 2] = ["modules.dep", "modules.builtin"];

/// Whether the module is built into the kernel of that release, or on disk for it.
pub fn can_load(release: &str, module: &str) -> bool {
    let folder = Path::new(FOLDER).join(release);
    LISTS.iter().any(|list| {
        std::fs::read_to_string(folder.join(list)).is_ok_and(|list| lists(&list, module))
    })
}

fn lists(list: &str, module: &str) -> bool {
    let path = |line: &str| line.split(':').next().unwrap_or(line).to_owned();
    list.lines().map(path).any(|path| {
        let file = path.rsplit('/').next().unwrap_or(&path);
        // Also compressed: `.ko.xz`, `.ko.zst`.
        file.strip_prefix(module)
            .is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_name() {
        let dep = "kernel/net/sched/sch_ingress.ko.xz: kernel/net/a.ko.xz\n\
                   kernel/net/sched/cls_bpf.ko:\n";
        assert!(lists(dep, "sch_ingress"));
        assert!(lists(dep, "cls_bpf"));
        assert!(!lists(dep, "cls"));
        assert!(
            !lists(dep, "a"),
            "it is needed by another, not listed itself"
        );
    }
}
