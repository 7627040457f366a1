//! One run in the lab: boot, one command, its output, status and files.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Seek as _, Write as _},
    mem,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    console::{Lines, is_emulators_fault, trouble},
    image::Kernel,
    initrd,
    port::{Marked, end_marker, parse_status},
    qemu::{Accelerator, Clock, Devices, Event, Machine, Qemu, Source},
    rootfs::Manager,
    tools::Tools,
};

/// Maximum time for the trace after the kernel reported a fault.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// LLVM in the root filesystem, of which half the memory may be used, in MiB.
pub const BPF_TOOLS_MEMORY: u32 = 2048;

/// What to run in the guest.
#[derive(Clone, Debug)]
pub struct Run {
    pub kernel: Kernel,
    /// Program and arguments; it runs as root in `/root`, with no input.
    pub command: Vec<OsString>,
    /// Files or directories of the host, and where the guest has them (absolute).
    /// Permissions are kept; missing directories above them are made. A program
    /// given as a file goes without its debug information.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Files or directories of the guest to bring back when the command has ended;
    /// one that is not there is simply absent. (Files of procfs have no size
    /// and come back empty: copy what they say.)
    pub collect: Vec<PathBuf>,
    /// The host directory they are put below, with their whole guest path.
    pub collect_into: PathBuf,
    /// In MiB; at least [`BPF_TOOLS_MEMORY`] is given with `bpf_tools`.
    pub memory: u32,
    pub processors: u32,
    /// From the start of QEMU.
    pub deadline: Duration,
    /// The deadline counts again from everything that the command writes to its standard
    /// output.
    pub renews_deadline: bool,
    /// Have Debian's bpftool and bpftrace in the guest.
    pub bpf_tools: bool,
    /// Have this cluster manager in the guest.
    pub manager: Option<Manager>,
    /// Whether the guest may reboot: the command then runs again. Else a reboot ends the machine.
    pub reboots: bool,
    pub clock: Clock,
}

impl Run {
    /// A run with 1 GiB, two processors, five minutes and no files.
    pub fn new<S: Into<OsString>>(kernel: Kernel, command: impl IntoIterator<Item = S>) -> Self {
        Self {
            kernel,
            command: command.into_iter().map(Into::into).collect(),
            files: Vec::new(),
            collect: Vec::new(),
            collect_into: PathBuf::from("."),
            memory: 1024,
            processors: 2,
            deadline: Duration::from_mins(5),
            renews_deadline: false,
            bpf_tools: false,
            manager: None,
            reboots: false,
            clock: Clock::default(),
        }
    }

    fn memory(&self) -> u32 {
        match self.bpf_tools {
            true => self.memory.max(BPF_TOOLS_MEMORY),
            false => self.memory,
        }
    }
}

/// Which of the command's streams bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command ended with this status (128 + n: by signal n), and the
    /// kernel's console shows no trouble.
    Exited(i32),
    /// The kernel's console shows a fault, whatever the command printed.
    Trouble(&'static str),
    /// The deadline came first.
    Deadline,
    /// QEMU ended before the command did.
    Gone,
    /// One of a cluster's servers: it was still up when the run ended.
    Up,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "the command exited with status {status}"),
            Self::Trouble(what) => write!(f, "the kernel reported a fault: {what}"),
            Self::Deadline => f.write_str("the deadline passed"),
            Self::Gone => f.write_str("the machine ended before the command"),
            Self::Up => f.write_str("the machine was still up when the run ended"),
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub ending: Ending,
    /// From the start of QEMU to the end.
    pub duration: Duration,
    /// From the start of QEMU to the start of the command.
    pub boot: Option<Duration>,
    /// Processor time that QEMU has used.
    pub busy: Duration,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The kernel's console and QEMU's own messages, line by line.
    pub console: Vec<String>,
}

impl Outcome {
    /// Whether the command exited with 0 and the kernel reported no fault.
    pub fn succeeded(&self) -> bool {
        self.ending == Ending::Exited(0)
    }

    /// The command's status, or an error that shows the console's end.
    pub fn status(&self) -> Result<i32> {
        match self.ending {
            Ending::Exited(status) => Ok(status),
            _ => bail!(
                "{} after {:.1} s; the console's last lines:\n{}",
                self.ending,
                self.duration.as_secs_f32(),
                self.console_tail(60)
            ),
        }
    }

    /// Whether the kernel's trouble is the emulator's fault, so that the run says nothing.
    pub fn is_emulators_fault(&self) -> bool {
        matches!(self.ending, Ending::Trouble(_)) && is_emulators_fault(&self.console)
    }

    /// The console's last lines.
    pub fn console_tail(&self, lines: usize) -> String {
        let from = self.console.len().saturating_sub(lines);
        match &self.console[from..] {
            [] => "(the console is empty)".into(),
            lines => lines.join("\n"),
        }
    }
}

/// A machine of a run, and what it is to do.
pub(super) struct Member<'a> {
    pub(super) run: &'a Run,
    pub(super) layers: Vec<PathBuf>,
    pub(super) devices: Devices,
}

/// Boots the machines and sees the run through: it ends with the first machine's command
/// or deadline, or with any kernel in trouble, and so do all machines. `output` gets what
/// the first machine's command writes, as it writes it.
///
/// The outcomes come in the machines' order.
pub(super) fn see_through(
    tools: &Tools,
    accelerator: Accelerator,
    members: Vec<Member<'_>>,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Vec<Outcome>> {
    let end = end_marker();
    let initrds = members
        .iter()
        .map(|member| {
            initrd::concatenate(&member.layers, |layer| {
                initrd::describe(layer, member.run, &end)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let first = members.first().context("a run without a machine")?.run;
    let start = Instant::now();
    let mut until = start + first.deadline;
    let mut renews = first.renews_deadline;
    let (sender, events) = mpsc::channel();
    let mut machines = Vec::new();
    for (number, (member, initrd)) in members.into_iter().zip(&initrds).enumerate() {
        let sender = sender.clone();
        let machine = Machine {
            arch: member.run.kernel.arch,
            image: &member.run.kernel.image,
            initrd,
            memory: member.run.memory(),
            processors: member.run.processors,
            accelerator,
            clock: member.run.clock,
            interactive: false,
            reboots: member.run.reboots,
            devices: member.devices,
        };
        let qemu = Qemu::start(tools, machine, move |event| {
            sender.send((number, event)).is_ok()
        })?;
        machines.push((qemu, Watch::new(&end)));
    }
    drop(sender);
    let mut take = |machines: &mut [(Qemu, Watch)], number: usize, event| {
        let watch = &mut machines[number].1;
        match number {
            0 => watch.take(event, start, output),
            _ => watch.take(event, start, &mut |_, _| {}),
        }
    };
    let ending = loop {
        let left = until.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok((number, event)) => {
                if renews && number == 0 && event.source == Source::Stdout {
                    until = Instant::now() + first.deadline;
                }
                take(&mut machines, number, event);
                switch_off(&mut machines, number)?;
            }
            Err(RecvTimeoutError::Timeout) => break Ending::Deadline,
            Err(RecvTimeoutError::Disconnected) => break Ending::Gone,
        }
        if machines.iter().any(|(_, watch)| watch.trouble.is_some()) {
            until = until.min(Instant::now() + LAST_WORDS);
            renews = false;
        }
        let watch = &machines[0].1;
        if let Some(status) = watch.complete()? {
            break Ending::Exited(status);
        }
        if watch.is_gone() {
            break Ending::Gone;
        }
    };
    let duration = start.elapsed();
    let was_gone: Vec<bool> = machines.iter().map(|(_, watch)| watch.is_gone()).collect();
    let mut busy = Vec::new();
    for (qemu, _) in &mut machines {
        busy.push(qemu.busy());
        qemu.kill();
    }
    // What was under way when the machines ended, the consoles above all.
    while let Ok((number, event)) = events.recv() {
        take(&mut machines, number, event);
    }
    if matches!(ending, Ending::Exited(_)) && !first.collect.is_empty() {
        extract(&machines[0].1.files, &first.collect_into)?;
    }
    let mut endings = vec![ending];
    for ((_, watch), gone) in machines.iter().zip(was_gone).skip(1) {
        endings.push(match watch.complete()? {
            Some(status) => Ending::Exited(status),
            None if gone => Ending::Gone,
            None => Ending::Up,
        });
    }
    let watches = machines.into_iter().map(|(_, watch)| watch);
    Ok(watches
        .zip(endings)
        .zip(busy)
        .map(|((watch, ending), busy)| watch.outcome(ending, duration, busy))
        .collect())
}

/// Ends the machines that this one wants off (`off NUMBER`; the first machine has number 0), and
/// repeats each request to it once that machine has ended.
fn switch_off(machines: &mut [(Qemu, Watch)], asking: usize) -> Result<()> {
    for line in mem::take(&mut machines[asking].1.requests) {
        let number = line.strip_prefix("off ").and_then(|text| text.parse().ok());
        let server = number.filter(|number| (1..machines.len()).contains(number));
        let server = server.with_context(|| format!("machine {asking} requests {line:?}"))?;
        machines[server].0.kill();
        machines[asking].0.answer(&line);
    }
    Ok(())
}

/// An interactive shell in the guest on our own terminal.
pub(super) fn shell(
    tools: &Tools,
    layers: &[PathBuf],
    accelerator: Accelerator,
    run: &Run,
) -> Result<()> {
    let size = rustix::termios::tcgetwinsize(io::stdin())
        .context("a shell needs a terminal; use `lab run` without one")?;
    let initrd = initrd::concatenate(layers, |layer| {
        initrd::describe(layer, run, "")?;
        let size = format!("{} {}\n", size.ws_row, size.ws_col);
        layer.file("lab/console", 0o644, size.as_bytes())
    })?;
    let (sender, events) = mpsc::channel();
    let machine = Machine {
        arch: run.kernel.arch,
        image: &run.kernel.image,
        initrd: &initrd,
        memory: run.memory(),
        processors: run.processors,
        accelerator,
        clock: run.clock,
        interactive: true,
        reboots: false,
        devices: Devices::default(),
    };
    let mut qemu = Qemu::start(tools, machine, move |event: Event| {
        sender.send(event).is_ok()
    })?;
    let mut lines = Lines::default();
    while let Ok(event) = events.recv() {
        for line in lines.push(&event.bytes) {
            // The terminal is raw while QEMU has it.
            eprint!("{line}\r\n");
        }
    }
    let status = qemu.wait()?;
    ensure!(status.success(), "QEMU failed ({status})");
    Ok(())
}

/// What has come out of the guest so far.
struct Watch {
    stdout: Marked,
    stderr: Marked,
    status: Vec<u8>,
    files: Vec<u8>,
    switch: Lines,
    requests: Vec<String>,
    lines: Lines,
    console: Vec<String>,
    trouble: Option<&'static str>,
    started: Option<Duration>,
    /// How many streams have ended.
    ended: usize,
}

impl Watch {
    fn new(end: &str) -> Self {
        Self {
            stdout: Marked::new(end),
            stderr: Marked::new(end),
            status: Vec::new(),
            files: Vec::new(),
            switch: Lines::default(),
            requests: Vec::new(),
            lines: Lines::default(),
            console: Vec::new(),
            trouble: None,
            started: None,
            ended: 0,
        }
    }

    fn take(&mut self, event: Event, start: Instant, output: &mut dyn FnMut(Stream, &[u8])) {
        self.ended += usize::from(event.bytes.is_empty());
        match event.source {
            Source::Stdout => output(Stream::Stdout, self.stdout.push(&event.bytes)),
            Source::Stderr => output(Stream::Stderr, self.stderr.push(&event.bytes)),
            Source::Status => {
                self.status.extend(event.bytes);
                if self.started.is_none() && self.status.starts_with(b"started\n") {
                    self.started = Some(start.elapsed());
                }
            }
            Source::Files => self.files.extend(event.bytes),
            Source::Switch => self.requests.extend(self.switch.push(&event.bytes)),
            Source::Console => {
                for line in self.lines.push(&event.bytes) {
                    self.trouble = self.trouble.or_else(|| trouble(&line));
                    self.console.push(line);
                }
            }
            Source::Qemu => {
                let text = String::from_utf8_lossy(&event.bytes);
                self.console
                    .extend(text.lines().map(|line| format!("QEMU: {line}")));
            }
        }
    }

    /// The command's status, once all that it wrote has arrived too.
    fn complete(&self) -> Result<Option<i32>> {
        let Some((status, size)) = parse_status(&self.status)? else {
            return Ok(None);
        };
        let whole = self.stdout.ended && self.stderr.ended && self.files.len() >= size;
        Ok(whole.then_some(status))
    }

    /// Whether the machine has ended, and all that came out of it has been taken.
    fn is_gone(&self) -> bool {
        self.ended == Source::STREAMS
    }

    fn outcome(mut self, ending: Ending, duration: Duration, busy: Duration) -> Outcome {
        self.console.extend(self.lines.rest());
        Outcome {
            ending: self.trouble.map_or(ending, Ending::Trouble),
            duration,
            boot: self.started,
            busy,
            stdout: self.stdout.seen,
            stderr: self.stderr.seen,
            console: self.console,
        }
    }
}

fn extract(tar: &[u8], into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
    let mut file = tempfile::tempfile()?;
    file.write_all(tar)?;
    file.rewind()?;
    crate::apt::run(
        Command::new("tar")
            .args(["--extract", "--no-same-owner", "--directory"])
            .arg(into)
            .stdin(file),
    )
    .with_context(|| format!("unpack the guest's files into {}", into.display()))?;
    Ok(())
}
