//! `cargo xtask test`: runs all checks, then prints their times and one line of counts.
//!
//! | step | counts |
//! |---|---|
//! | eBPF toolchain, format, shellcheck, eBPF clippy, clippy | one each |
//! | unit and property tests | every test |
//! | promtool on the metrics and the alert rules | one |
//! | contracts with each kernel | one each |
//! | lab scenarios | every scenario on every kernel; skipped if the kernel lacks what it needs |
//!
//! The next steps run even if one fails.

mod tally;

use std::{
    io::{BufRead as _, BufReader},
    path,
    process::{Command, ExitCode, Stdio},
    slice,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::tally::Tally;
use crate::{
    arch::Arch,
    build,
    cache::Cache,
    contracts,
    demo::{self, DemoArgs},
    lab::{Kernel, KernelName, Lab, Offered, UnlockIp, kernel::newest},
    package::promtool,
    scripts,
    toolchain::Toolchain,
};

/// Variable for `tests/tests/lab`: the kernels.
const LAB_KERNELS: &str = "NLMFO_LAB_KERNELS";
/// Variable for `tests/tests/lab`: the machines' architecture.
const LAB_ARCH: &str = "NLMFO_LAB_ARCH";
/// Variable for `tests/tests/lab`: the scenarios to run.
const LAB_SCENARIOS: &str = "NLMFO_LAB_SCENARIOS";
/// Variable for `tests/tests/lab`: run the long form of every scenario.
const LAB_FULL: &str = "NLMFO_LAB_FULL";
/// Variable for `nlmfo-common/tests/calls`: the number of random cases.
const CALL_CASES: &str = "NLMFO_CALL_CASES";

/// The scenarios for another architecture than this machine's: they need each kind of eBPF
/// program, and show a release, a grace, the probe and the package.
const ELSEWHERE: [&str; 7] = [
    "check",
    "locks-exact",
    "counters-calls",
    "release-ipv4",
    "grace-window",
    "probe-baseline",
    "package-deb",
];

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Check what depends on this architecture: without NAME or --full, its eBPF programs, the
    /// contracts, the demo and a few scenarios
    #[arg(long, value_enum, default_value_t, conflicts_with_all = ["fast", "long"])]
    arch: Arch,

    /// Run only the scenarios with this name, or with NAME in their names
    #[arg(value_name = "NAME")]
    scenarios: Vec<String>,

    /// Run the scenarios on this kernel (repeatable) [default: one with a working and one with
    /// a broken `unlock_ip`]
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<KernelName>,

    /// Skip the lab
    #[arg(long, conflicts_with_all = ["kernel", "scenarios", "full"])]
    fast: bool,

    /// Run every scenario in its long form on every kernel that the archive offers (takes
    /// hours)
    #[arg(long)]
    full: bool,

    /// Test the NLM call parser on a million random connections (takes minutes)
    #[arg(long)]
    long: bool,
}

/// Fails if any check failed. The last line on standard output is the counts.
pub fn execute(cache: &Cache, args: &TestArgs) -> Result<ExitCode> {
    let mut steps = Steps::default();
    if args.scenarios.is_empty() {
        match args.arch {
            Arch::HERE => fast_checks(cache, args, &mut steps),
            arch => steps.check("clippy of the eBPF programs", || {
                Toolchain::prepare(cache)?.lint_ebpf(arch)
            }),
        }
    }
    if !args.fast {
        on_kernels(cache, args, &mut steps);
    }
    eprintln!("\n{}", steps.table());
    println!("{}", steps.sum);
    Ok(match steps.sum.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn fast_checks(cache: &Cache, args: &TestArgs, steps: &mut Steps) {
    steps.check("eBPF toolchain", || {
        eprintln!("{}", Toolchain::prepare(cache)?.describe()?);
        Ok(())
    });
    steps.check("format", || {
        succeed(build::cargo(cache).args(["fmt", "--all", "--check"]))
    });
    steps.check("shellcheck", || scripts::check(cache));
    steps.check("clippy of the eBPF programs", || {
        Toolchain::prepare(cache)?.lint_ebpf(args.arch)
    });
    steps.check("clippy", || {
        succeed(
            build::cargo(cache)
                .args(["clippy", "--workspace", "--all-targets", "--locked"])
                .args(["--", "-D", "warnings"]),
        )
    });
    steps.run("building", || {
        succeed(cargo_test(cache).arg("--no-run"))?;
        Ok(Tally::default())
    });
    steps.run("unit and property tests", || {
        // The lab's test target is built too, but runs nothing here.
        let mut cargo = cargo_test(cache);
        cargo.env(LAB_KERNELS, "");
        if args.long || args.full {
            cargo.env(CALL_CASES, "1000000");
        }
        run_tests(&mut cargo)
    });
    steps.check("promtool on the metrics and the alert rules", || {
        promtool::check(cache)
    });
}

/// The steps that run on each kernel.
fn on_kernels(cache: &Cache, args: &TestArgs, steps: &mut Steps) {
    let mut found = Vec::new();
    steps.run("kernels", || {
        let (kernels, skipped) = kernels(args)?;
        found = kernels;
        Ok(skipped)
    });
    if args.scenarios.is_empty() {
        for kernel in &found {
            steps.check(&format!("contracts with {kernel}"), || {
                let hold = contracts::check(cache, args.arch, slice::from_ref(kernel))?;
                ensure!(hold, "this kernel lacks something that nlmfo uses");
                Ok(())
            });
        }
    }
    let is_short = args.arch != Arch::HERE && args.scenarios.is_empty() && !args.full;
    let scenarios = match is_short {
        true => ELSEWHERE.join(" "),
        false => args.scenarios.join(" "),
    };
    if let Some(kernel) = found.first().filter(|_| is_short) {
        steps.check(&format!("demo on {kernel}"), || {
            let args = DemoArgs {
                nfsv4: false,
                arch: args.arch,
                kernel: Some(kernel.clone()),
            };
            ensure!(demo::shows(cache, args)?, "the demo failed");
            Ok(())
        });
    }
    if !found.is_empty() {
        steps.run("lab scenarios", || {
            build::prepare(cache)?;
            let names: Vec<String> = found.iter().map(KernelName::to_string).collect();
            let mut cargo = cargo_test(cache);
            cargo
                .args(["--test", "lab"])
                .env(LAB_KERNELS, names.join(" "))
                .env(LAB_ARCH, args.arch.debian())
                .env(LAB_SCENARIOS, scenarios)
                .env(LAB_FULL, if args.full { "1" } else { "0" });
            run_tests(&mut cargo)
        });
    }
}

/// Runs tests of the whole workspace, so that the steps share their build.
fn cargo_test(cache: &Cache) -> Command {
    let mut cargo = build::cargo(cache);
    cargo.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    cargo
}

/// The steps that have been done.
#[derive(Default)]
struct Steps {
    sum: Tally,
    took: Vec<(String, Duration)>,
}

impl Steps {
    /// A step that passes or fails.
    fn check(&mut self, what: &str, work: impl FnOnce() -> Result<()>) {
        self.run(what, || work().map(|()| Tally::PASSED));
    }

    /// A step with its own counts. One that cannot run counts as a failure.
    fn run(&mut self, what: &str, work: impl FnOnce() -> Result<Tally>) {
        let start = Instant::now();
        eprintln!("\n== {what}");
        let tally = work().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            Tally::FAILED
        });
        let took = start.elapsed();
        eprintln!("== {what}: {tally} ({:.0} s)", took.as_secs_f32());
        self.took.push((what.to_owned(), took));
        self.sum += tally;
    }

    fn table(&self) -> String {
        let mut table = String::from("  seconds  step\n");
        for (what, took) in &self.took {
            table += &format!("{:9.0}  {what}\n", took.as_secs_f32());
        }
        let all: Duration = self.took.iter().map(|(_, took)| *took).sum();
        table + &format!("{:9.0}  all steps", all.as_secs_f32())
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}

/// Runs tests, forwards their output, and adds up their result lines.
fn run_tests(command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut tallies = Vec::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tallies.extend(Tally::of_result_line(&line));
    }
    let status = child.wait().context("wait for the tests to end")?;
    Ok(Tally::of_tests(tallies, status.success()))
}

/// The kernels to run on, ready to boot, and what there is none for. They are
/// fetched here, so that no scenario's time goes by meanwhile.
fn kernels(args: &TestArgs) -> Result<(Vec<KernelName>, Tally)> {
    let lab = Lab::open(args.arch)?;
    let (names, skipped) = match args.kernel.as_slice() {
        [] if args.full => (every(&lab.kernels()?), Tally::default()),
        [] => choose(&lab.kernels()?),
        named => {
            let from_here: Result<_> = named.iter().cloned().map(from_anywhere).collect();
            (from_here?, Tally::default())
        }
    };
    for name in &names {
        let Kernel { release, .. } = lab.kernel(name)?;
        eprintln!("{name} is {release}");
    }
    Ok((names, skipped))
}

/// cargo runs tests in the directory of their package.
fn from_anywhere(name: KernelName) -> Result<KernelName> {
    let KernelName::Path { image, modules } = name else {
        return Ok(name);
    };
    Ok(KernelName::Path {
        image: path::absolute(image)?,
        modules: modules.map(path::absolute).transpose()?,
    })
}

/// One whose `unlock_ip` is broken and one whose works, as far as the archive
/// has them, and of two series: those differ in more than this, as in whether lockd
/// queues blocked locks. A kind that the archive lacks is skipped, not forgotten.
fn choose(offered: &[Offered]) -> (Vec<KernelName>, Tally) {
    let of_kind = |kind| move |kernel: &Offered| kernel.unlock_ip() == kind;
    let broken = newest(offered, of_kind(UnlockIp::Broken));
    let works = of_kind(UnlockIp::Works);
    let of_another_series = |kernel: &Offered| {
        broken.is_none_or(|broken| broken.version.series() != kernel.version.series())
    };
    let works = newest(offered, |kernel| works(kernel) && of_another_series(kernel))
        .or_else(|| newest(offered, works));

    let mut names = Vec::new();
    let mut skipped = Tally::default();
    for (kind, kernel) in [(UnlockIp::Broken, broken), (UnlockIp::Works, works)] {
        match kernel {
            Some(kernel) => names.push(kernel.name()),
            None => {
                eprintln!("skipped: the archive offers no kernel whose unlock_ip is {kind}");
                skipped += Tally::SKIPPED;
            }
        }
    }
    (names, skipped)
}

/// The default kernel of each suite, each kernel once.
fn every(offered: &[Offered]) -> Vec<KernelName> {
    let mut names = Vec::new();
    let mut releases = Vec::new();
    for kernel in offered.iter().filter(|kernel| kernel.default) {
        if !releases.contains(&&kernel.release) {
            releases.push(&kernel.release);
            names.push(kernel.name());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use nlmfo_common::version::Version;

    use crate::apt::Suite;

    fn offered(suite: Suite, version: Version) -> Offered {
        Offered {
            suite,
            release: format!("{version}-cloud-amd64"),
            package_version: format!("{version}-1"),
            version,
            packages: Vec::new(),
            default: true,
        }
    }

    #[test]
    fn a_broken_kernel_and_a_working_one_are_chosen() {
        let kernels = [
            offered(Suite::Bookworm, Version::new(6, 1, 176)),
            offered(Suite::Trixie, Version::new(6, 12, 117)),
        ];
        let (names, skipped) = choose(&kernels);
        let names: Vec<String> = names.iter().map(KernelName::to_string).collect();
        assert_eq!(names, ["bookworm", "trixie"]);
        assert_eq!(skipped, Tally::default());
    }

    #[test]
    fn the_two_are_of_two_series_where_they_can_be() {
        let mut kernels = vec![
            offered(Suite::Trixie, Version::new(6, 12, 107)),
            offered(Suite::TrixieSecurity, Version::new(6, 12, 117)),
        ];
        let names = |kernels: &[Offered]| -> Vec<String> {
            choose(kernels)
                .0
                .iter()
                .map(KernelName::to_string)
                .collect()
        };
        assert_eq!(names(&kernels), ["trixie", "trixie-security"]);
        kernels.push(offered(Suite::BookwormSecurity, Version::new(6, 1, 192)));
        assert_eq!(names(&kernels), ["trixie", "bookworm-security"]);
    }

    #[test]
    fn every_kernel_is_chosen_once() {
        let mut kernels = vec![
            offered(Suite::Trixie, Version::new(6, 12, 107)),
            offered(Suite::TrixieSecurity, Version::new(6, 12, 117)),
            offered(Suite::Bookworm, Version::new(6, 12, 107)),
            offered(Suite::Trixie, Version::new(6, 12, 95)),
        ];
        kernels[3].default = false;
        let names: Vec<String> = every(&kernels).iter().map(KernelName::to_string).collect();
        assert_eq!(names, ["trixie", "trixie-security"]);
    }

    #[test]
    fn a_kind_that_nobody_offers_is_counted() {
        let (names, skipped) = choose(&[offered(Suite::Trixie, Version::new(6, 12, 117))]);
        assert_eq!((names.len(), skipped), (1, Tally::SKIPPED));
    }

    #[test]
    fn arguments_name_scenarios_and_contradict_each_other() {
        #[derive(Debug, clap::Parser)]
        struct Test {
            #[command(flatten)]
            args: TestArgs,
        }
        let parse = |line: &str| {
            let parsed = <Test as clap::Parser>::try_parse_from(line.split(' '));
            parsed.map(|test| test.args)
        };
        let args = parse("test --kernel sid grace-window fence").expect("is allowed");
        assert_eq!(args.scenarios, ["grace-window", "fence"]);
        assert!(parse("test --full").is_ok_and(|args| args.full));
        for bad in [
            "test --fast fence",
            "test --fast --full",
            "test --fast --kernel sid",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_has_every_step() {
        let mut steps = Steps::default();
        steps.check("format", || Ok(()));
        steps.check("clippy", || anyhow::bail!("a warning"));
        let table = steps.table();
        let steps_of: Vec<_> = table.lines().map(|line| &line[11..]).collect();
        assert_eq!(steps_of, ["step", "format", "clippy", "all steps"]);
        assert_eq!(steps.sum.to_string(), "1 passed, 1 failed");
    }

    #[test]
    fn what_tests_print_is_added_up() -> Result<()> {
        let script = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'; \
                      echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured'; exit 1";
        let sum = run_tests(Command::new("sh").args(["-c", script]))?;
        assert_eq!(sum.to_string(), "3 passed, 1 failed, 1 skipped");
        Ok(())
    }
}
