//! Stopping a server: its clients see no end of a connection, their records are kept, and nothing of it
//! is left here: no thread, no lock, no mount, no process.

use super::daemons::{self, Daemon};
use super::facts;
use super::phase::{self, Phase};
use super::{Server, ServerError, link, mounts, start};
use crate::causes::chain;
use crate::kernel::namespaces::Namespaces;
use crate::kernel::nfsd::Nfsd;

/// Processes that would keep the server's devices busy after the stop: they have the devices mounted
/// too.
pub fn pins(server: &Server) -> Vec<String> {
    let own = server.namespaces.processes().unwrap_or_default();
    let mut found = Vec::new();
    for filesystem in &server.description.filesystems {
        let device = &filesystem.device;
        let others = mounts::processes_with(device).into_iter();
        found.extend(others.filter(|other| !own.contains(other)).map(|other| {
            format!(
                "{} is mounted also in the mount namespace of process {} ({})",
                device.display(),
                other.id,
                other.name
            )
        }));
    }
    found
}

/// Drops all packets from clients. Runs in the server's namespaces. Answers to earlier requests still
/// reach them: if an answer were lost, the client would ask for the lock again, and not reclaim it.
pub fn fence(server: &Server) -> Result<(), ServerError> {
    phase::set(Phase::Unfinished)?;
    match link::drop_packets(&server.description) {
        Ok(()) => Ok(()),
        // An interrupted stop has removed the route, or the address is gone.
        Err(_) => take_addresses_down(server),
    }
}

/// Takes the addresses down: no packet reaches clients or comes from them any more. Runs in the
/// server's namespaces.
fn take_addresses_down(server: &Server) -> Result<(), ServerError> {
    link::lower(&server.description)
}

/// Brings the addresses of a server that continues to serve up again. Runs in its namespaces.
pub fn unfence(server: &Server) -> Result<(), ServerError> {
    take_addresses_down(server)?;
    start::raise(server, Phase::Serving)
}

/// Stops nfsd, which then has no thread and no NFSv4 client. Runs in the server's namespaces.
pub fn halt(server: &Server) -> Result<(), ServerError> {
    take_addresses_down(server)?;
    let before = facts::here()?;
    keep_list(server)?;
    if before.threads > 0 {
        Nfsd::mounted()?.stop()?;
    }
    let after = facts::here()?;
    if after.threads > 0 || after.clients > 0 {
        let (threads, clients) = (after.threads, after.clients);
        return Err(ServerError::Refused(format!(
            "nfsd was told to stop, and has {threads} threads and {clients} NFSv4 clients"
        )));
    }
    Ok(())
}

/// In an orderly stop, lockd tells statd to forget every client. So statd is killed first; nothing
/// waits for it.
fn keep_list(server: &Server) -> Result<(), ServerError> {
    daemons::kill_and_wait(server, Daemon::Statd).map_err(|error| {
        ServerError::Refused(format!(
            "{}; nfsd was not stopped, as statd would forget its clients",
            chain(&error)
        ))
    })
}

/// Removes what is left of a server that no longer serves, and verifies that its devices are free. If
/// nothing of it was on this node, a device may be missing here, or be a DRBD secondary.
pub fn remove(server: &Server) -> Result<(), ServerError> {
    let namespaces = &server.namespaces;
    let was_here = namespaces.exist();
    if was_here {
        end(namespaces)?;
        server.within(|| {
            mounts::unmount_own(&server.description)?;
            link::remove_vips(&server.description)
        })??;
    }
    (namespaces.remove()).map_err(server.namespaces_error("remove"))?;
    let mut own = server.description.filesystems.iter();
    own.try_for_each(|filesystem| match was_here {
        true => mounts::ensure_free(&filesystem.device),
        false => mounts::ensure_free_or_missing(&filesystem.device),
    })
}

/// Stops nfsd in these namespaces without changing statd's list, and kills every process.
pub fn end(namespaces: &Namespaces) -> Result<(), ServerError> {
    let enter = |source| ServerError::Namespaces {
        action: "enter",
        name: String::new(),
        source,
    };
    let all = || namespaces.processes().map_err(enter);
    let found = all()?;
    if let Some(statd) = daemons::found(Daemon::Statd, &found) {
        daemons::kill_now(statd);
    }
    let stopped = namespaces.within(|| match Nfsd::mounted() {
        // The kernel asks rpcbind even if there is nothing to stop, and fails without it.
        Ok(nfsd) if nfsd.threads()? > 0 => nfsd.stop(),
        _ => Ok(()),
    });
    stopped.map_err(enter)??;
    daemons::end(all)?;
    namespaces.within(link::remove).map_err(enter)?
}
