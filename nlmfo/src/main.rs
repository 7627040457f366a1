//! `nlmfo`: parse the arguments, run the command, report the error.

use std::process::ExitCode;

use clap::Parser;
use nlmfo::cli::Cli;
use nlmfo::commands;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_env("NLMFO_LOG"))
        .with_writer(std::io::stderr)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .init();
    match commands::run(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("nlmfo: {:#}", failure.error);
            failure.exit.into()
        }
    }
}
