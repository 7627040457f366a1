//! One file per subcommand: parse the arguments, call, print.

mod check;
mod cleanup;
mod clients;
mod doctor;
mod everywhere;
mod failover;
mod grace;
mod ha_callout;
mod locks;
mod nfs4_clients;
mod notify;
mod peer;
mod probe;
mod release;
mod restart;
mod serve;
mod server;
mod table;
mod watch;
mod whole;
mod whole_server;

use anyhow::anyhow;

use crate::cli::{Cli, ClientsArgs, Command, LocksArgs, ServerAction, WatchArgs};
use crate::exit::{Exit, Failure};
use crate::files;
use crate::kernel::symbols;

/// Runs the command and tells how it ended.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    if let Command::Server(args) = &cli.command
        && let ServerAction::Exec { name, command } = &args.action
    {
        // Before this process has a second thread.
        return server::exec(name, command);
    }
    // Before it enters another mount namespace. Not everybody may have a file there.
    if let Ok(path) = files::run::file("symbols.json") {
        symbols::keep_in(&path, |path, text| {
            files::write_whole(path, text, files::PRIVATE)
        });
    }
    if let Command::Locks(LocksArgs { filter, .. })
    | Command::Clients(ClientsArgs { filter, .. })
    | Command::Watch(WatchArgs { filter, .. }) = &cli.command
        && let Some(name) = &filter.server
    {
        require_root()?;
        everywhere::enter(name)?;
    }
    match cli.command {
        Command::Locks(args) => locks::run(&args),
        Command::Release(args) => release::run(&args),
        Command::Restart(args) => restart::run(&args),
        Command::Failover(args) => failover::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Grace(args) => grace::run(&args),
        Command::Clients(args) => clients::run(&args),
        Command::HaCallout(args) => ha_callout::run(&args),
        Command::Notify(args) => notify::run(&args),
        Command::Server(args) => server::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::GraceKeeper => grace::keep(),
        Command::Hold { name } => {
            crate::testbed::node::hold(&name)?;
            Ok(Exit::Done)
        }
    }
}

/// eBPF, lockd's lists and routing rules are root's.
fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(anyhow!("this command needs root, to load eBPF programs: run it with sudo").into())
}
