//! `nlmfo failover`: move a VIP's locks.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::server::{print_or_json, print_started, print_stopped};
use super::{peer, require_root, whole_server};
use crate::cli::{FailoverArgs, PairArgs, Phase, ReleaseArgs, TakeoverArgs};
use crate::exit::{Exit, Failure};
use crate::failover::options::{Notify, Options, OtherNode, ReleaseOptions, TakeoverOptions, Task};
use crate::failover::own::{self, Done, Moved, Started, Stopped};
use crate::failover::run::{self, reports::Reports};
use crate::notify::state_dir::StateDir;
use crate::server::Server;
use crate::{interrupt, output, runtime};

pub fn run(args: &FailoverArgs) -> Result<Exit, Failure> {
    require_root()?;
    let options = options(args)?;
    if args.whole_server {
        return whole_server::run(&options, args.json);
    }
    if let Some(server) = own::server_of(&options.vips)? {
        return own::run(&options, &server, &mut |done, ended| {
            if let Some(exit) = ended {
                interrupt::work_is_done(exit as u8);
            }
            print_own(args.json, &server, &done);
        });
    }
    if options.takeover.after_fencing {
        let error = anyhow!("--after-fencing is for a VIP that is a server of its own");
        return Err(Failure::new(Exit::Usage, error));
    }
    let mut reports = Reports::new(&options);
    let ended = runtime::run(run::run(&options, &mut reports))
        .context("starting the asynchronous runtime")?;
    let kept = reports.keep_at_end(&ended);
    let exit = ended
        .as_ref()
        .map_or_else(|failure| failure.exit, |exit| *exit);
    interrupt::work_is_done(exit as u8);
    print(args.json, &reports, kept.as_deref());
    ended
}

fn print(json: bool, reports: &Reports, kept: Option<&Path>) {
    let Reports {
        release,
        takeover,
        pair,
        plan,
        ..
    } = reports;
    if json {
        (release.iter()).for_each(|one| output::report_json(kept, one));
        (takeover.iter()).for_each(|one| output::report_json(kept, one));
        (pair.iter()).for_each(|one| output::report_json(kept, one));
        (plan.iter()).for_each(|one| output::report_json(kept, one));
        return;
    }
    output::report(kept, |out| {
        (release.iter()).try_for_each(|one| write!(out, "{one}"))?;
        (takeover.iter()).try_for_each(|one| write!(out, "{one}"))?;
        (pair.iter()).try_for_each(|one| write!(out, "{one}"))?;
        (plan.iter()).try_for_each(|one| write!(out, "{one}"))
    });
}

fn print_own(json: bool, server: &Server, done: &Done) {
    match done {
        Done::Stopped(stopped) => print_or_json(json, Stopped::SCHEMA, server, stopped, |out| {
            print_stopped(out, server, stopped)
        }),
        Done::Started(started) => print_or_json(json, Started::SCHEMA, server, started, |out| {
            print_started(out, server, started)
        }),
        Done::Moved(moved) => print_or_json(json, Moved::SCHEMA, server, moved, |out| {
            print_stopped(out, server, &moved.stop)?;
            write!(out, "{moved}")
        }),
    }
}

fn options(args: &FailoverArgs) -> Result<Options, Failure> {
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    vips.dedup();
    Ok(Options {
        vips,
        task: task(&args.pair, args.phase)?,
        dry_run: args.release.dry_run,
        state: StateDir::new(&args.state.state_dir),
        release: release(&args.release),
        takeover: takeover(&args.takeover),
    })
}

fn task(args: &PairArgs, phase: Option<Phase>) -> Result<Task, Failure> {
    Ok(match (&args.to, phase) {
        (Some(host), _) => Task::Move(OtherNode {
            rsh: peer::rsh(&args.remote, host)?,
            hand_over: args.hand_over.clone(),
            hand_over_deadline: args.hand_over_deadline,
        }),
        (None, Some(Phase::Release)) => Task::Release,
        (None, Some(Phase::Takeover)) => Task::Takeover,
        (None, None) => Task::Both,
    })
}

fn release(args: &ReleaseArgs) -> ReleaseOptions {
    ReleaseOptions {
        record: args.record.clone(),
        filesystems: args.unlock_filesystem.clone(),
        reboot_notice: args.reboot_notice,
        without_nfs4: args.nfs.is_some(),
        deadline: args.deadline,
        fence: (!args.no_fence).then_some(args.fence),
    }
}

fn takeover(args: &TakeoverArgs) -> TakeoverOptions {
    TakeoverOptions {
        expect: args.expect.clone(),
        grace: args.grace,
        wait_services: args.wait_services,
        wait_address: args.wait_address,
        notify: match &args.notify {
            _ if args.no_notify => Notify::Nobody,
            Some(program) => Notify::Program(program.clone()),
            None => Notify::Nlmfo,
        },
        config: args.names.config.clone(),
        filesystems: args.filesystem.clone(),
        after_fencing: args.after_fencing,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(words: &str) -> Result<Options, Failure> {
        let words = format!("nlmfo failover --vip fd77::1 --vip 10.77.0.1 {words}");
        let cli = Cli::from_arguments(words.split_whitespace().map(Into::into));
        match cli.map(|cli| cli.command) {
            Ok(Command::Failover(args)) => options(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_options_the_defaults_are_those_of_the_command_line() {
        let options = parsed("--vip 10.77.0.1").unwrap();
        let vips: [IpAddr; 2] = ["10.77.0.1", "fd77::1"].map(|vip| vip.parse().unwrap());
        assert_eq!(options.vips, vips);
        assert!(matches!(options.task, Task::Both));
        assert!(!options.dry_run);
        assert_eq!(options.release, ReleaseOptions::default());
        assert_eq!(options.takeover, TakeoverOptions::default());
    }

    #[test]
    fn options_are_what_was_given() {
        let options = parsed("--no-fence --no-notify --nfs 3 --deadline 5").unwrap();
        let release = ReleaseOptions {
            fence: None,
            without_nfs4: true,
            deadline: Duration::from_secs(5),
            ..ReleaseOptions::default()
        };
        assert_eq!(options.release, release);
        assert_eq!(options.takeover.notify, Notify::Nobody);
        let options = parsed("--to b --hand-over-deadline 7").unwrap();
        let Task::Move(node) = options.task else {
            panic!("{:?}", options.task);
        };
        assert_eq!(node.rsh.host, "b");
        assert_eq!(node.rsh.program, ["ssh", "-o", "BatchMode=yes"]);
        assert_eq!(node.hand_over_deadline, Duration::from_secs(7));
        let failure = parsed("--to b --rsh 'ssh").unwrap_err();
        assert_eq!(failure.exit, Exit::Usage, "{:#}", failure.error);
    }
}
