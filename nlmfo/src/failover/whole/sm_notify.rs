//! nfs-utils' `sm-notify`, which runs once after each boot. If it runs after our start, it moves the
//! clients that statd monitors again to its own list, and notifies them. They would reclaim after
//! grace, and be refused.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::server::ServerError;
use crate::causes::chain;
use crate::files::{self, PRIVATE};
use crate::notify::sm::Listed;
use crate::server::program::run_within;

/// Exists if `sm-notify` has run since the boot; it then exits at once (sm-notify(8), option `-f`).
const RAN: &str = "/run/sm-notify.pid";

/// Whether it has something to do that nlmfo does not do: statd's list has clients from before the
/// boot. If all were listed after the boot, nlmfo notifies those that hold something, and `sm-notify`
/// would make other servers release the locks of this node.
fn is_due(listed: &[Listed], boot: SystemTime) -> bool {
    listed.iter().any(|one| one.written < boot)
}

/// Runs it if that is due, in the background, or marks that it has run.
pub(super) async fn have_done(listed: &[Listed], deadline: Duration) -> Result<(), ServerError> {
    let path = Path::new(RAN);
    if path.exists() {
        return Ok(());
    }
    match is_due(listed, boot()) {
        true => Ok(run_within::<&str>("sm-notify", &[], deadline).await?),
        false => mark(path),
    }
}

fn mark(path: &Path) -> Result<(), ServerError> {
    let pid = format!("{}\n", std::process::id());
    match files::create_new(path, pid.as_bytes(), PRIVATE, |_| ()) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let why = format!("cannot create {}: {}", path.display(), chain(&error));
            Err(ServerError::Other(why))
        }
        _ => Ok(()),
    }
}

/// When the machine was booted.
fn boot() -> SystemTime {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(up.tv_sec.unsigned_abs(), up.tv_nsec.unsigned_abs() as u32);
    SystemTime::now() - up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_for_clients_from_before_the_boot() {
        let boot = boot();
        let listed = |written| Listed {
            name: "c1".into(),
            written,
        };
        let (before, after) = (boot - Duration::from_secs(1), boot + Duration::from_secs(1));
        assert!(!is_due(&[], boot));
        assert!(!is_due(&[listed(after)], boot));
        assert!(is_due(&[listed(after), listed(before)], boot));
    }

    #[test]
    fn a_mark_that_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sm-notify.pid");
        std::fs::write(&path, "7\n").unwrap();
        mark(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "7\n");
    }
}
