//! Starting a server: everything is in place, and its grace has been checked, before its address is up.

use super::daemons::{self, Daemon};
use super::description::Version;
use super::facts::{self, Facts, Others};
use super::holder::{self, Last};
use super::phase::{self, Phase};
use super::program::run;
use super::{Server, ServerError, check, link, mounts, stop};
use crate::causes::chain;
use crate::kernel::lockd;
use crate::kernel::nfsd::Nfsd;

/// A server whose namespaces, interface and mounts are here, and that does not serve yet.
#[must_use = "it is half started"]
pub struct Created {
    others: Others,
    /// How the server ended before.
    pub last: Last,
}

impl Created {
    /// Other servers that the start disturbed.
    pub fn disturbed(&self, server: &Server) -> Result<Vec<String>, ServerError> {
        Ok(self.others.disturbed(&Others::than(server.name())?))
    }
}

/// Creates everything that the server's daemons need, in the node's own namespaces. With `fenced`, the
/// server may have run on another node that did not stop it.
///
/// # Errors
/// After an error, nothing of it is left here.
pub fn create(server: &Server, fenced: bool) -> Result<Created, ServerError> {
    if server.is_here() {
        return Err(ServerError::Running(server.name().to_owned()));
    }
    let missing = check::missing(server)?;
    if !missing.is_empty() {
        return Err(ServerError::NotStarted {
            name: server.name().to_owned(),
            reason: missing.join("; "),
            is_elsewhere: false,
        });
    }
    holder::ahead(server, fenced)?;
    let others = Others::than(server.name())?;
    match make(server, fenced) {
        Ok(last) => Ok(Created { others, last }),
        Err(refused) if refused.is_elsewhere() => {
            stop::remove(server)?;
            Err(refused)
        }
        Err(error) => Err(undone(server, &chain(&error))),
    }
}

/// Removes a server that could not be started. The error says why, and what is left.
pub fn undone(server: &Server, why: &str) -> ServerError {
    let left = match stop::remove(server) {
        Ok(()) => "nothing of it is left on this node".to_owned(),
        Err(left) => format!(
            "parts of it are left ({}): run `nlmfo cleanup`",
            chain(&left)
        ),
    };
    ServerError::NotStarted {
        name: server.name().to_owned(),
        reason: format!("{why}; {left}"),
        is_elsewhere: false,
    }
}

fn make(server: &Server, fenced: bool) -> Result<Last, ServerError> {
    let description = &server.description;
    let existing = link::existing(&description.link);
    let leave = || mounts::leave_others(description);
    let created = (server.namespaces).create(&description.scope, existing.as_deref(), leave);
    created.map_err(server.namespaces_error("create"))??;
    link::make(description, &server.namespaces.network())?;
    server.within(|| {
        mounts::prepare(description)?;
        link::raise_loopback()?;
        holder::last(server, fenced)
    })?
}

/// Starts the daemons that do not run and nfsd's threads, and checks its grace: without grace, clients
/// that held locks must not reach the server. Runs in the server's namespaces.
pub fn threads(server: &Server) -> Result<(), ServerError> {
    let description = &server.description;
    let running = server.processes()?;
    let mut needed = daemons::of(server);
    needed.retain(|daemon| daemons::found(*daemon, &running).is_none());
    // The others register with rpcbind. They take long, so they are started in parallel.
    if let Some(rpcbind) = needed.extract_if(.., |one| *one == Daemon::Rpcbind).next() {
        daemons::start(server, rpcbind)?;
    }
    let starting = (needed.into_iter())
        .map(|daemon| daemons::spawn(server, daemon))
        .collect::<Result<Vec<_>, _>>()?;
    let monitors = server.monitors();
    let nfsd = Nfsd::mounted()?;
    let runs = nfsd.threads()? > 0;
    if !runs {
        nfsd.set_times(description.lease, description.grace)?;
        run("exportfs", &["-r"])?;
    }
    // nfsd asks nfsdcld once, when it starts.
    let (nfsdcld, rest): (Vec<_>, Vec<_>) =
        (starting.into_iter()).partition(|one| one.daemon() == Daemon::Nfsdcld);
    for one in nfsdcld {
        one.serving()?;
    }
    if !runs {
        let (versions, threads) = (&description.versions, description.threads);
        run("rpc.nfsd", &arguments(versions, threads))?;
    }
    for one in rest {
        one.serving()?;
    }
    if let Some(nfsdcld) = daemons::found(Daemon::Nfsdcld, &server.processes()?) {
        daemons::ensure_asked(server, nfsdcld.id)?;
    }
    let facts = facts::here()?;
    judge(&facts, description.serves_v3() && monitors > 0).map_err(ServerError::Refused)?;
    if facts.grace.lockd && monitors == 0 {
        // No client has an NFSv3 lock to reclaim, and lockd's grace refuses new NFSv4 locks too.
        lockd::end_grace()?;
    }
    Ok(())
}

/// Brings the addresses up: from now on, clients may take locks that are in no record. Runs in the
/// server's namespaces.
pub fn appear(server: &Server, phase: Phase) -> Result<(), ServerError> {
    holder::write(server)?;
    raise(server, phase)
}

/// Brings the addresses up.
pub(super) fn raise(server: &Server, phase: Phase) -> Result<(), ServerError> {
    link::raise(&server.description)?;
    phase::set(phase)
}

fn arguments(versions: &[Version], threads: u32) -> Vec<String> {
    let mut arguments = Vec::new();
    for version in Version::ALL {
        let flag = if versions.contains(&version) {
            "-V"
        } else {
            "-N"
        };
        arguments.extend([flag.to_owned(), version.to_string()]);
    }
    // Without it, the minor versions have no effect.
    if !versions.iter().any(|version| *version > Version::V3) {
        arguments.extend(["-N".to_owned(), "4".to_owned()]);
    }
    arguments.push(threads.to_string());
    arguments
}

/// Why a server in this state must not get its address. If nfsdcld has no records, nfsd ends its grace
/// at once; an earlier step has checked that nfsd asked nfsdcld.
fn judge(facts: &Facts, has_clients_of_v3: bool) -> Result<(), String> {
    if facts.threads == 0 {
        return Err("rpc.nfsd succeeded, but nfsd has no thread".into());
    }
    if has_clients_of_v3 && !facts.grace.lockd {
        return Err(
            "statd's list has clients to notify, but lockd is not in grace: their locks could be \
             given to others"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::grace::Grace;

    #[test]
    fn nfsd_is_told_every_version() {
        let words = |versions: &[Version]| arguments(versions, 8).join(" ");
        assert_eq!(words(&Version::ALL), "-V 3 -V 4.0 -V 4.1 -V 4.2 8");
        assert_eq!(words(&[Version::V4(2)]), "-N 3 -N 4.0 -N 4.1 -V 4.2 8");
        assert_eq!(words(&[Version::V3]), "-V 3 -N 4.0 -N 4.1 -N 4.2 -N 4 8");
    }

    #[test]
    fn no_address_without_grace_for_those_who_held_locks() {
        let facts = |threads, lockd| Facts {
            threads,
            grace: Grace { nfsd: false, lockd },
            ..Facts::default()
        };
        judge(&facts(8, true), true).unwrap();
        judge(&facts(8, false), false).unwrap();
        assert!(judge(&facts(8, false), true).unwrap_err().contains("grace"));
        assert!(judge(&facts(0, true), true).unwrap_err().contains("thread"));
    }
}
