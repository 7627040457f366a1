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

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::cli::{Cli, ClientsArgs, Command, LocksArgs, ServerAction, StateArgs, WatchArgs};
use crate::exit::{Exit, Failure};
use crate::files;
use crate::foreign::Shown;
use crate::grace::gate;
use crate::interrupt;
use crate::kernel::{preflight, symbols};
use crate::notify::callout;
use crate::observe::programs::{probed_functions, state_functions};

/// Runs the command and returns its exit status.
///
/// # Errors
/// If the command could not run; the failure has the exit status.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    if let Command::Server(args) = &cli.command
        && let ServerAction::Exec { name, command } = &args.action
    {
        // Before this process has a second thread.
        return server::exec(name, command);
    }
    // Before it enters another mount namespace. Only root can have a file there.
    if let Ok(path) = files::run::file("symbols.json") {
        let names = || {
            (probed_functions().chain(state_functions()))
                .chain(gate::probed_functions())
                .chain(preflight::symbols())
                .collect()
        };
        let write = |path: &Path, text: &[u8]| files::write_whole(path, text, files::PRIVATE);
        symbols::keep_in(&path, write, names);
    }
    if let Command::Failover(_)
    | Command::Restart(_)
    | Command::Notify(_)
    | Command::Serve(_)
    | Command::Cleanup(_) = &cli.command
    {
        // These commands handle signals themselves.
        interrupt::keep().context("cannot install signal handlers")?;
    }
    if let Some(StateArgs { state_dir }) = state_of(&cli.command) {
        let answers = require_answers(state_dir);
        if let (Err(failure), Command::HaCallout(_)) = (&answers, &cli.command) {
            // statd discards what its callout prints.
            callout::log(&failure.error.to_string());
        }
        answers?;
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

/// Maximum time until the state directory answers, which may be on storage that fails over.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);

/// The state directory that a command uses.
fn state_of(command: &Command) -> Option<&StateArgs> {
    Some(match command {
        Command::Check(args) => &args.state,
        Command::Doctor(args) => &args.state,
        Command::Failover(args) => &args.state,
        Command::Restart(args) => &args.state,
        Command::Notify(args) => &args.state,
        Command::Clients(args) => &args.state,
        Command::Serve(args) => &args.state,
        Command::HaCallout(args) => &args.state,
        Command::Watch(args) => &args.state,
        Command::Cleanup(args) => &args.state,
        _ => return None,
    })
}

/// Otherwise, a command would never end if its state directory does not answer.
fn require_answers(state: &Path) -> Result<(), Failure> {
    match files::answers::answers(state, STATE_TIMEOUT) {
        Ok(false) => {
            let error = anyhow!(
                "the state directory {} does not answer within {} s: its filesystem is frozen, or its \
                 server is gone. Repair it, or use another directory (--state-dir)",
                state.shown(),
                STATE_TIMEOUT.as_secs()
            );
            Err(Failure::new(Exit::Unsupported, error))
        }
        Ok(true) => Ok(()),
        Err(error) => Err(anyhow!(error)
            .context("looking at the state directory")
            .into()),
    }
}

/// eBPF, lockd's lists and routing rules need root.
fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(anyhow!("this command needs root, to load eBPF programs: run it with sudo").into())
}
