//! `nlmfo ha-callout`: statd's callout program.

use std::ffi::OsStr;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;

use crate::cli::CalloutArgs;
use crate::exit::{Exit, Failure};
use crate::notify::callout::{self, Event};
use crate::notify::state_dir::StateDir;
use crate::output;

/// The hidden flag of the background process that waits for the site's program.
const IN_BACKGROUND: &str = "--in-background";

pub fn run(args: &CalloutArgs) -> Result<Exit, Failure> {
    let outcome = answer(args);
    if let Err(failure) = &outcome {
        // statd discards what its callout prints.
        callout::log(&format!("{:#}", failure.error));
    }
    outcome
}

fn answer(args: &CalloutArgs) -> Result<Exit, Failure> {
    let state = StateDir::new(&args.state.state_dir);
    match &args.callout {
        Some(program) if args.in_background => call(args, &state, program)?,
        Some(program) => leave_it_to_another_process(args, program)?,
        None => print(args, &state)?,
    }
    Ok(Exit::Done)
}

/// Without a program to run: prints the VIPs, one per line.
fn print(args: &CalloutArgs, state: &StateDir) -> Result<(), Failure> {
    let vips = vips(args, state)?;
    output::list(|out| vips.iter().try_for_each(|vip| writeln!(out, "{vip}")))
}

fn vips(args: &CalloutArgs, state: &StateDir) -> Result<Vec<IpAddr>, Failure> {
    let vips = match args.event {
        Event::AddClient if args.in_background => callout::vips_of_new(state, &args.client),
        _ => callout::vips_of(state, &args.client),
    };
    vips.map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

fn leave_it_to_another_process(args: &CalloutArgs, program: &Path) -> Result<(), Failure> {
    let this = std::env::current_exe().context("cannot find nlmfo's own executable")?;
    let mut arguments: Vec<&OsStr> = vec![
        "ha-callout".as_ref(),
        IN_BACKGROUND.as_ref(),
        "--callout".as_ref(),
        program.as_ref(),
        "--state-dir".as_ref(),
        args.state.state_dir.as_ref(),
        // The client chooses its name.
        "--".as_ref(),
        args.event.name().as_ref(),
        args.client.as_ref(),
        args.node.as_ref(),
    ];
    arguments.extend(args.state_number.as_deref().map(OsStr::new));
    callout::start_detached(&this, &arguments)
        .with_context(|| format!("cannot start {} in the background", this.display()))?;
    Ok(())
}

/// Calls the site's program as statd would, with the VIP instead of the node's name: once for each VIP,
/// or with statd's argument if the client's VIP is not known.
fn call(args: &CalloutArgs, state: &StateDir, program: &Path) -> Result<(), Failure> {
    let called = |third: &OsStr| {
        let mut arguments = vec![OsStr::new(args.event.name()), &args.client, third];
        arguments.extend(args.state_number.as_deref().map(OsStr::new));
        callout::start_detached(program, &arguments)
            .with_context(|| format!("cannot run the callout {}", program.display()))
    };
    let vips = match args.event {
        Event::AddClient | Event::DelClient => vips(args, state)?,
        // statd passes the address from which it notified the client.
        Event::SmNotify => Vec::new(),
    };
    if vips.is_empty() {
        called(&args.node)?;
    }
    for vip in vips {
        called(vip.to_string().as_ref())?;
    }
    Ok(())
}
