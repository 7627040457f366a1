//! aya's loader, without the kernel's type information.

use aya::EbpfLoader;
use nix::sched::{CloneFlags, unshare};

use crate::kernel::btf;

/// A loader that looks up no offsets: they are in our globals.
///
/// `EbpfLoader::new` of aya 0.14 parses all of the kernel's BTF, even if `btf(None)` follows:
/// half of the start. So it runs in a thread that does not find the file: below this root it
/// has another path. Where a thread may not change its root, the loader is only slower.
pub fn loader<'a>() -> EbpfLoader<'a> {
    let thread = std::thread::Builder::new().spawn(|| {
        // This changes the root of this thread only.
        if unshare(CloneFlags::CLONE_FS).is_ok() {
            let _ = nix::unistd::chroot(btf::FOLDER);
        }
        EbpfLoader::new()
    });
    let made = thread.ok().and_then(|thread| thread.join().ok());
    let mut loader = made.unwrap_or_default();
    loader.btf(None);
    loader
}
