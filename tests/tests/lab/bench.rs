//! The machines that the scenarios run in.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Result;
use libtest_mimic::{Completion, Failed};
use nlmfo_tests::cluster::NODES;
use nlmfo_tests::emulation;
use nlmfo_tests::queue::{Job, Place, Queue, Work};
use nlmfo_tests::scenarios::{self, Extra, Manager};
use nlmfo_tests::times::{Times, Took};
use nlmfo_tests::verdict::{Report, Verdict, said_by};
use xtask::arch::Arch;
use xtask::cache::Cache;
use xtask::lab::{self, Cluster, ClusterOutcome, Kernel, KernelName, Lab, Outcome, Run, Stream};
use xtask::package;

/// Of each disk that a cluster's servers share; sparse.
const DISK: u64 = 64 << 20;
const DISKS: usize = 2;

/// Of the console, with a scenario that failed.
const CONSOLE_LINES: usize = 30;

/// How a trial ended.
pub type End = Result<Completion, Failed>;

/// What all scenarios share.
pub struct Bench {
    arch: Arch,
    lab: Lab,
    names: Vec<KernelName>,
    kernels: Vec<Kernel>,
    /// The directory with `nlmfo` and `lab-guest`.
    programs: PathBuf,
    full: bool,
    /// Show what scenarios say that pass.
    shows_all: bool,
    results: Mutex<HashMap<(usize, &'static str), Sender<End>>>,
    pub times: Times,
}

impl Bench {
    /// Builds and downloads what is needed.
    pub fn prepare(arch: Arch, names: Vec<KernelName>, full: bool) -> Result<Bench> {
        let programs = xtask::build::workspace(&Cache::open()?, arch, false)?;
        let lab = Lab::open(arch)?;
        let kernels = names
            .iter()
            .map(|name| {
                let kernel = lab.kernel(name)?;
                eprintln!("{name} is {}", kernel.release);
                Ok(kernel)
            })
            .collect::<Result<_>>()?;
        Ok(Bench {
            arch,
            lab,
            names,
            kernels,
            programs,
            full,
            shows_all: env::var("NLMFO_LAB_OUTPUT").is_ok_and(|shown| shown == "1"),
            results: Mutex::default(),
            times: Times::default(),
        })
    }

    /// Gets the result of a job once it has been run.
    pub fn result_of(&self, job: &Job) -> Receiver<End> {
        let (sender, receiver) = channel();
        let mut results = self.results.lock().expect("no panic while held");
        results.insert((job.kernel, job.scenario), sender);
        receiver
    }

    /// Runs what there is until all is done.
    pub fn work(&self, queue: &Queue) {
        while let Some(work) = queue.take() {
            let is_cluster = work.iter().any(|job| job.place == Place::Cluster);
            let again = match is_cluster {
                true => self.on_a_cluster(work),
                false => self.on_one_machine(work),
            };
            queue.done(is_cluster, again);
        }
    }

    fn resolve(&self, job: &Job, end: End) {
        let mut results = self.results.lock().expect("no panic while held");
        if let Some(sender) = results.remove(&(job.kernel, job.scenario)) {
            // Its trial waits for it.
            let _ = sender.send(end);
        }
    }

    /// Runs the scenarios one after the other; returns those to be run in another machine.
    fn on_one_machine(&self, work: Work) -> Vec<Job> {
        let mut run = self.managed(&work[0], &self.command("scenarios", &work));
        let cache = self.lab.cache();
        for extra in work.iter().filter_map(extra_of) {
            let files = match extra {
                Extra::Deb => package::for_guest(cache, self.arch, &self.programs.join("nlmfo")),
                Extra::Prometheus => package::promtool::for_guest(cache, self.arch),
                Extra::Reboots => continue,
            };
            match files {
                Ok(files) => run.files.extend(files),
                Err(error) => return self.give_up(&work, &format!("{error:#}")),
            }
        }
        let mut batch = Batch {
            bench: self,
            jobs: &work,
            line: Vec::new(),
            reports: Vec::new(),
        };
        let outcome = self.lab.run(&run, &mut |stream, bytes| {
            if stream == Stream::Stdout {
                batch.read(bytes);
            }
        });
        let reports = batch.reports;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return self.give_up(&work, &format!("{error:#}")),
        };
        self.count(&outcome);
        let stderr = String::from_utf8_lossy(&outcome.stderr);
        if self.shows_all {
            eprintln!("{stderr}");
        }
        let console = format!(
            "--- the end of the kernel's console\n{}",
            outcome.console_tail(CONSOLE_LINES)
        );
        let status = outcome.status();
        if outcome.boot.is_none()
            && let Err(error) = &status
            && !outcome.is_emulators_fault()
        {
            return self.give_up(&work, &format!("{error:#}"));
        }
        // The scenario in which the machine broke down; or the last, after its end.
        let broken = match (&status, reports.len()) {
            (Ok(0 | 1), done) if done > 0 => None,
            (_, done) => Some(done.min(work.len() - 1)),
        };
        let mut again = Vec::new();
        for (number, job) in work.iter().enumerate() {
            let said = said_by(job.scenario, &stderr);
            let tried_again = outcome.is_emulators_fault() && job.tries < emulation::TRIES;
            if Some(number) == broken {
                let why = match &status {
                    Ok(status) => format!("the scenario did not finish: exit status {status}"),
                    Err(error) => format!("{error:#}"),
                };
                if tried_again {
                    eprintln!(
                        "{}: the emulator failed, not the kernel; trying again",
                        job.scenario
                    );
                    again.push(Job {
                        tries: job.tries + 1,
                        ..*job
                    });
                } else {
                    self.resolve(job, Err(format!("{why}\n{said}").into()));
                }
                continue;
            }
            let report = reports.iter().find(|one| one.scenario == job.scenario);
            match report {
                // The machine could not be used any more.
                None => again.push(*job),
                Some(Report { verdict, .. }) => {
                    self.resolve(job, end(verdict, || format!("{said}\n{console}")));
                }
            }
        }
        again
    }

    fn on_a_cluster(&self, work: Work) -> Vec<Job> {
        let [job] = &work[..] else {
            return self.give_up(&work, "a cluster runs one scenario");
        };
        let server = |(name, address)| Run {
            reboots: extra_of(job) == Some(Extra::Reboots),
            ..self.managed(job, &["node", name, address])
        };
        let cluster = Cluster {
            driver: self.machine(job, &self.command("scenario", &work)),
            servers: NODES.map(server).into(),
            disks: vec![DISK; DISKS],
        };
        let outcome = match self.lab.run_cluster(&cluster, &mut |_, _| {}) {
            Ok(outcome) => outcome,
            Err(error) => return self.give_up(&work, &format!("{error:#}")),
        };
        if outcome.is_emulators_fault() && job.tries < emulation::TRIES {
            eprintln!(
                "{}: the emulator failed, not the kernel; trying again",
                job.scenario
            );
            return vec![Job {
                tries: job.tries + 1,
                ..*job
            }];
        }
        let all = outcome.servers.iter().chain([&outcome.driver]);
        all.for_each(|machine| self.count(machine));
        let said = || said_by_cluster(&outcome);
        if self.shows_all {
            eprintln!("{}", said());
        }
        let stdout = String::from_utf8_lossy(&outcome.driver.stdout);
        let report = stdout.lines().find_map(Report::of_line);
        if let Some(report) = &report {
            let busy: Duration = [&outcome.driver]
                .into_iter()
                .chain(&outcome.servers)
                .map(|machine| machine.busy)
                .sum();
            self.scenario(job, report, busy.as_secs_f64());
        }
        let end = match (outcome.status(), report) {
            (Err(error), _) => Err(format!("{error:#}\n{}", said()).into()),
            (Ok(_), None) => Err(format!("the guest gave no report\n{}", said()).into()),
            (Ok(_), Some(report)) => end(&report.verdict, said),
        };
        self.resolve(job, end);
        Vec::new()
    }

    /// All of them fail for a reason of the lab's.
    fn give_up(&self, work: &[Job], why: &str) -> Vec<Job> {
        for job in work {
            self.resolve(job, Err(why.into()));
        }
        Vec::new()
    }

    /// `lab-guest`'s arguments to run these.
    fn command(&self, what: &'static str, jobs: &[Job]) -> Vec<&'static str> {
        let mut command = vec![what];
        command.extend(self.full.then_some("--full"));
        command.extend(jobs.iter().map(|job| job.scenario));
        command
    }

    /// A machine that does this with `lab-guest`.
    fn machine(&self, job: &Job, arguments: &[&str]) -> Run {
        let command = ["/lab-guest"].iter().chain(arguments).copied();
        let mut run = Run::new(self.kernels[job.kernel].clone(), command);
        run.processors = job.processors;
        run.deadline = emulation::scenario_deadline(self.full) + emulation::SWEEP_DEADLINE;
        run.renews_deadline = true;
        run.files = ["nlmfo", "lab-guest"]
            .map(|program| (self.programs.join(program), format!("/{program}").into()))
            .into();
        run
    }

    /// A machine with the job's manager, and with what is installed beside the tool.
    fn managed(&self, job: &Job, arguments: &[&str]) -> Run {
        let mut run = self.machine(job, arguments);
        run.manager = job.manager.map(|manager| match manager {
            Manager::Pacemaker => lab::Manager::Pacemaker,
            Manager::Keepalived => lab::Manager::Keepalived,
            Manager::Ctdb => lab::Manager::Ctdb,
            Manager::Systemd => lab::Manager::Systemd,
        });
        if job.manager.is_some() {
            let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
            run.files.push((dist, "/dist".into()));
        }
        run
    }

    fn count(&self, machine: &Outcome) {
        let boot = machine.boot.unwrap_or(machine.duration);
        self.times.machine(boot, machine.duration, machine.busy);
    }

    fn scenario(&self, job: &Job, report: &Report, busy: f64) {
        let what = format!("{}::{}", self.names[job.kernel], job.scenario);
        let took = Took {
            all: report.seconds,
            busy,
            tool: report.tool,
            sweep: report.sweep,
        };
        self.times.scenario(what, took);
    }
}

/// Reads the reports of a machine that runs several scenarios, while it runs.
struct Batch<'a> {
    bench: &'a Bench,
    jobs: &'a [Job],
    line: Vec<u8>,
    reports: Vec<Report>,
}

impl Batch<'_> {
    fn read(&mut self, bytes: &[u8]) {
        self.line.extend(bytes);
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let Some(report) = Report::of_line(&String::from_utf8_lossy(&line)) else {
                continue;
            };
            let job = self.jobs.iter().find(|job| job.scenario == report.scenario);
            if let Some(job) = job {
                self.bench.scenario(job, &report, report.busy);
            }
            // The last one's may still have brought the kernel down.
            self.pass_last();
            self.reports.push(report);
        }
    }

    /// Tells of the last scenario that it passed, if it did. Of one that failed all is told
    /// when the machine has ended.
    fn pass_last(&self) {
        let Some(last) = self.reports.last() else {
            return;
        };
        let job = self.jobs.iter().find(|job| job.scenario == last.scenario);
        if let Some(job) = job
            && !matches!(last.verdict, Verdict::Fail(_))
        {
            self.bench.resolve(job, end(&last.verdict, String::new));
        }
    }
}

fn extra_of(job: &Job) -> Option<Extra> {
    let all = scenarios::all();
    all.iter().find(|one| one.name == job.scenario)?.extra
}

fn end(verdict: &Verdict, said: impl Fn() -> String) -> End {
    match verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Unsupported(reason) => Ok(Completion::ignored_with(reason)),
        Verdict::Fail(why) => Err(format!("{why}\n{}", said()).into()),
    }
}

/// What a person wants to see of a run that failed.
fn said_by_cluster(outcome: &ClusterOutcome) -> String {
    let said = |outcome: &Outcome| {
        format!(
            "--- the guest's standard error\n{}\n--- the end of the kernel's console\n{}",
            String::from_utf8_lossy(&outcome.stderr),
            outcome.console_tail(CONSOLE_LINES)
        )
    };
    let servers = NODES.iter().zip(&outcome.servers);
    let servers = servers
        .map(|((name, _), server)| format!("\n=== {name}: {}\n{}", server.ending, said(server)));
    said(&outcome.driver) + &servers.collect::<String>()
}
