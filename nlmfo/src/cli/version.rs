//! What `nlmfo --version` prints.

/// The kernel lines that the lab runs nlmfo on.
macro_rules! kernels {
    () => {
        "6.1, 6.12, 7.2 and 7.3"
    };
}

/// Of a release build, the commit; see `nlmfo/build.rs`.
pub const COMMIT: &str = env!("NLMFO_BUILT_FROM");

/// As in `Cargo.toml`, without the commit.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version, commit and kernels, a line each.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit ",
    env!("NLMFO_BUILT_FROM"),
    "\ntested on Linux ",
    kernels!()
);
