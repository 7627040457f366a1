//! `nlmfo`: parse the arguments, run the command, report the error.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use nlmfo::cli::Cli;
use nlmfo::{commands, output};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_env("NLMFO_LOG"))
        .with_writer(output::Log)
        .with_ansi(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .init();
    let cli = match Cli::from_arguments(arguments()) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error).into(),
    };
    match commands::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::fail(&failure.error);
            failure.exit.into()
        }
    }
}

/// statd is given a program and no arguments for it: by this name we are its callout.
const CALLOUT: &str = "nlmfo-ha-callout";

fn arguments() -> impl Iterator<Item = OsString> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let is_callout = Path::new(&name).file_name() == Some(CALLOUT.as_ref());
    // statd's arguments are not options of nlmfo.
    let command = match is_callout {
        true => &["ha-callout", "--"][..],
        false => &[],
    };
    std::iter::once(name)
        .chain(command.iter().map(OsString::from))
        .chain(arguments)
}
