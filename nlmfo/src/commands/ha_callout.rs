//! `nlmfo ha-callout`: statd's callout program.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;

use crate::cli::CalloutArgs;
use crate::exit::{Exit, Failure};
use crate::notify::callout::{self, Event};
use crate::notify::state_dir::StateDir;

/// The hidden flag of the process that waits for the site's program, in statd's stead.
const IN_BACKGROUND: &str = "--in-background";

pub fn run(args: &CalloutArgs) -> Result<Exit, Failure> {
    let state = StateDir::new(&args.state.state_dir);
    match &args.callout {
        Some(program) if args.in_background => call(args, &state, program)?,
        Some(_) => leave_it_to_another_process(args)?,
        None => print(args, &state)?,
    }
    Ok(Exit::Done)
}

/// With nobody to call: the VIPs, one a line.
fn print(args: &CalloutArgs, state: &StateDir) -> Result<(), Failure> {
    let vips = vips(args, state)?;
    let mut out = io::stdout().lock();
    (vips.iter().try_for_each(|vip| writeln!(out, "{vip}")))
        .context("writing to standard output")?;
    Ok(())
}

fn vips(args: &CalloutArgs, state: &StateDir) -> Result<Vec<IpAddr>, Failure> {
    let vips = match args.event {
        Event::AddClient if args.in_background => callout::vips_of_new(state, &args.client),
        _ => callout::vips_of(state, &args.client),
    };
    vips.map_err(|error| Failure::new(Exit::CouldNotRun, error))
}

fn leave_it_to_another_process(args: &CalloutArgs) -> Result<(), Failure> {
    let this = std::env::current_exe().context("finding the program of nlmfo itself")?;
    let state_dir = args.state.state_dir.to_string_lossy();
    let mut arguments = vec![
        "ha-callout",
        IN_BACKGROUND,
        "--state-dir",
        &state_dir,
        args.event.name(),
        &args.client,
        &args.node,
    ];
    arguments.extend(args.state_number.as_deref());
    callout::start_detached(&this, &arguments)
        .with_context(|| format!("starting {} in the background", this.display()))?;
    Ok(())
}

/// Calls the site's program as statd would, with the VIP for the node's name: once for
/// each VIP, or with what statd said if the client's VIP is not known.
fn call(args: &CalloutArgs, state: &StateDir, program: &Path) -> Result<(), Failure> {
    let called = |third: &str| {
        let mut arguments = vec![args.event.name(), &args.client, third];
        arguments.extend(args.state_number.as_deref());
        callout::start_detached(program, &arguments)
            .with_context(|| format!("NLMFO_CALLOUT={}", program.display()))
    };
    let vips = match args.event {
        Event::AddClient | Event::DelClient => vips(args, state)?,
        // statd says which address it told the client from.
        Event::SmNotify => Vec::new(),
    };
    if vips.is_empty() {
        called(&args.node)?;
    }
    for vip in vips {
        called(&vip.to_string())?;
    }
    Ok(())
}
