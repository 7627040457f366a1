//! One QEMU process: its command line, and the streams that connect it.
//!
//! Every stream of the guest is a socket pair whose other end QEMU inherits, so
//! when QEMU ends each stream ends, and nothing is left in the file system.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    param::clock_ticks_per_second,
    process::{Signal, set_parent_process_death_signal},
};

use super::{tools::Tools, tsc};
use crate::arch::Arch;

/// How the guest's code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM: the processor itself, if this machine supports it.
    Kvm,
    /// QEMU's translator: slower, and works everywhere.
    Tcg,
}

/// The clock of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// This machine's clock.
    #[default]
    Host,
    /// The guest's instructions, one nanosecond each, on a single processor (QEMU's `-icount`); when
    /// nothing runs, the clock jumps to the next timer. The load and speed of this machine have no
    /// effect: the same work takes the same time. It is not the time of a real processor, since it
    /// ignores caches and pipelines.
    Instructions,
}

impl Clock {
    /// Its name for the guest's programs.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Host => "host",
            Clock::Instructions => "instructions",
        }
    }
}

/// Where bytes from the guest come from. The first five are virtio-serial
/// ports, numbered from 1 in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
    Status,
    Files,
    /// Requests to end another machine of the cluster; it is answered.
    Switch,
    /// The kernel's console.
    Console,
    /// QEMU's own complaints.
    Qemu,
}

impl Source {
    pub const PORTS: [Self; 5] = [
        Self::Stdout,
        Self::Stderr,
        Self::Status,
        Self::Files,
        Self::Switch,
    ];
    /// Of a machine that is not interactive: each ends with an [`Event`] without bytes.
    pub const STREAMS: usize = Self::PORTS.len() + 2;
}

/// Bytes that arrived; none when the stream has ended.
#[derive(Debug)]
pub struct Event {
    pub source: Source,
    pub bytes: Vec<u8>,
}

/// One end of a network cable, the machine's next `ethN`. The other end is another
/// machine's; when either machine ends, so does the cable.
#[derive(Debug)]
pub struct Cable {
    pub end: UnixStream,
    pub mac: String,
}

/// What a machine of a cluster has that one by itself has not.
#[derive(Debug, Default)]
pub struct Devices {
    pub cables: Vec<Cable>,
    /// `/dev/vda` on, raw. Machines that are given the same file share the disk: what one
    /// has flushed the others read, as this machine's page cache lies between.
    pub disks: Vec<File>,
}

/// What to boot.
#[derive(Debug)]
pub struct Machine<'a> {
    pub arch: Arch,
    pub image: &'a Path,
    /// The concatenated layers; QEMU reads it at start.
    pub initrd: &'a File,
    /// In MiB.
    pub memory: u32,
    /// One, whatever this says, where time passes by instructions.
    pub processors: u32,
    pub accelerator: Accelerator,
    pub clock: Clock,
    /// Connect a terminal of the guest to ours instead of the ports.
    pub interactive: bool,
    /// A reboot starts the kernel again, with the disks as they are. Else it ends QEMU.
    pub reboots: bool,
    pub devices: Devices,
}

/// A running QEMU; killed when dropped, and by the kernel when the thread that
/// started it dies.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    /// Our end of [`Source::Switch`].
    switch: Option<UnixStream>,
}

/// `quiet` keeps the emulated serial line from slowing the boot, errors are
/// still shown. An oops ends the run at once, its trace is on the console.
const KERNEL_ARGUMENTS: &str =
    "quiet panic=-1 oops=panic cryptomgr.notests rdinit=/lab/init net.ifnames=0";

impl Qemu {
    /// `sink` gets what comes out of the machine, on a thread for each stream, until it
    /// returns false.
    pub fn start(
        tools: &Tools,
        machine: Machine<'_>,
        sink: impl Fn(Event) -> bool + Clone + Send + 'static,
    ) -> Result<Self> {
        let mut ours = Vec::new();
        let mut theirs: Vec<(Source, OwnedFd)> = Vec::new();
        let ports: &[Source] = if machine.interactive {
            &[]
        } else {
            &Source::PORTS
        };
        for &source in ports.iter().chain(&[Source::Console]) {
            let (host, guest) = UnixStream::pair().context("create a socket pair")?;
            ours.push((source, host));
            theirs.push((source, guest.into()));
        }
        let initrd = machine
            .initrd
            .try_clone()
            .context("duplicate the initramfs file")?;
        let fds: Vec<(Source, i32)> = theirs.iter().map(|(s, fd)| (*s, fd.as_raw_fd())).collect();

        let mut command = tools.qemu()?;
        command.args(arguments(&machine, initrd.as_raw_fd(), &fds));
        if machine.interactive {
            command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
        } else {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        command.stderr(Stdio::piped());
        inherit(
            &mut command,
            theirs
                .into_iter()
                .map(|(_, fd)| fd)
                .chain([initrd.into()])
                .chain(machine.devices.into_descriptors()),
        );
        let mut child = command.spawn().context("start QEMU")?;
        // The command holds our copies of QEMU's ends: without closing them no
        // stream would ever end.
        drop(command);

        let mut switch = None;
        for (source, stream) in ours {
            if source == Source::Switch {
                switch = Some(stream.try_clone().context("duplicate a socket")?);
            }
            pump(source, stream, sink.clone());
        }
        let stderr = child.stderr.take().expect("stderr is piped");
        pump(Source::Qemu, stderr, sink);
        Ok(Self { child, switch })
    }

    /// Answers a request of [`Source::Switch`]; a machine that has ended gets no answer.
    pub fn answer(&mut self, line: &str) {
        if let Some(switch) = &mut self.switch {
            let _ = writeln!(switch, "{line}");
        }
    }

    /// Processor time that it has used so far.
    pub fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        // The second field, the name, may have spaces; the 14th and 15th are the times.
        let ticks = |stat: String| {
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let mut next = || fields.next()?.parse::<u64>().ok();
            Some(next()? + next()?)
        };
        let ticks = stat.ok().and_then(ticks).unwrap_or(0);
        Duration::from_millis(ticks * 1000 / clock_ticks_per_second())
    }

    /// Ends the machine now.
    pub fn kill(&mut self) {
        // It may have ended by itself: nothing to do then.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    pub fn wait(&mut self) -> Result<std::process::ExitStatus> {
        self.child.wait().context("wait for QEMU")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets the child keep these descriptors, and die with us.
fn inherit(command: &mut Command, fds: impl Iterator<Item = OwnedFd>) {
    let fds: Vec<OwnedFd> = fds.collect();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        for fd in &fds {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes only prctl and fcntl
    // system calls; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(prepare);
    }
}

impl Devices {
    fn into_descriptors(self) -> impl Iterator<Item = OwnedFd> {
        let cables = self.cables.into_iter().map(|cable| cable.end.into());
        cables.chain(self.disks.into_iter().map(OwnedFd::from))
    }

    fn arguments(&self) -> Vec<(&'static str, String)> {
        let mut args = Vec::new();
        for (n, Cable { end, mac }) in self.cables.iter().enumerate() {
            let fd = end.as_raw_fd();
            args.push((
                "-netdev",
                format!("stream,id=net{n},addr.type=fd,addr.str={fd}"),
            ));
            args.push(("-device", format!("virtio-net-pci,netdev=net{n},mac={mac}")));
        }
        for (n, disk) in self.disks.iter().enumerate() {
            let fd = disk.as_raw_fd();
            args.push((
                "-drive",
                format!("if=none,id=disk{n},format=raw,file=/proc/self/fd/{fd},file.locking=off"),
            ));
            args.push((
                "-device",
                format!("virtio-blk-pci,drive=disk{n},share-rw=on"),
            ));
        }
        args
    }
}

fn pump(
    source: Source,
    mut stream: impl Read + Send + 'static,
    sink: impl Fn(Event) -> bool + Send + 'static,
) {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // A stream that breaks because QEMU was killed has simply ended.
            let size = stream.read(&mut buffer).unwrap_or(0);
            let bytes = buffer[..size].to_vec();
            if !sink(Event { source, bytes }) || size == 0 {
                return;
            }
        }
    });
}

/// QEMU's arguments; `fds` are the inherited sockets, `initrd` an inherited file.
fn arguments(machine: &Machine<'_>, initrd: i32, fds: &[(Source, i32)]) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut arg = |name: &str, value: String| args.extend([name.into(), value.into()]);
    arg("-M", machine.arch.board().into());
    let emulated = machine.arch.emulated_processor();
    let (accelerator, processor, processors) = match (machine.clock, machine.accelerator) {
        (Clock::Instructions, _) => ("tcg,thread=single", emulated, 1),
        (Clock::Host, Accelerator::Kvm) => ("kvm", "host", machine.processors),
        (Clock::Host, Accelerator::Tcg) => ("tcg,thread=multi", emulated, machine.processors),
    };
    arg("-accel", accelerator.into());
    arg("-cpu", processor.into());
    arg("-smp", processors.to_string());
    if machine.clock == Clock::Instructions {
        arg("-icount", "shift=0,sleep=off".into());
    }
    arg("-m", machine.memory.to_string());
    arg("-display", "none".into());
    arg("-initrd", format!("/proc/self/fd/{initrd}"));
    let tsc = match accelerator {
        "tcg,thread=multi" if machine.arch == Arch::Amd64 => tsc::argument(),
        _ => None,
    };
    let own = machine.arch.kernel_arguments();
    arg(
        "-append",
        format!("{own} {KERNEL_ARGUMENTS}{}", tsc.unwrap_or_default()),
    );
    arg("-device", "virtio-serial-pci".into());
    if machine.interactive {
        arg("-chardev", "stdio,id=terminal,signal=off".into());
        arg("-device", "virtconsole,nr=0,chardev=terminal".into());
    }
    for &(source, fd) in fds {
        let id = format!("{source:?}").to_lowercase();
        arg("-chardev", format!("socket,id={id},fd={fd}"));
        match Source::PORTS.iter().position(|port| *port == source) {
            Some(at) => arg(
                "-device",
                format!("virtserialport,nr={},chardev={id}", at + 1),
            ),
            None => arg("-serial", format!("chardev:{id}")),
        }
    }
    for (name, value) in machine.devices.arguments() {
        arg(name, value);
    }
    args.extend(["-kernel".into(), machine.image.into()]);
    args.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
    if !machine.reboots {
        args.push("-no-reboot".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbered_as_the_guest_expects() -> Result<()> {
        let initrd = tempfile::tempfile()?;
        let machine = Machine {
            arch: Arch::Amd64,
            image: Path::new("/k/image"),
            initrd: &initrd,
            memory: 1024,
            processors: 2,
            accelerator: Accelerator::Tcg,
            clock: Clock::Host,
            interactive: false,
            reboots: false,
            devices: Devices::default(),
        };
        let fds = [
            (Source::Stdout, 7),
            (Source::Files, 9),
            (Source::Console, 10),
        ];
        let args: Vec<String> = arguments(&machine, 5, &fds)
            .into_iter()
            .map(|arg| arg.into_string().expect("UTF-8"))
            .collect();
        let line = args.join(" ");
        for part in [
            "-initrd /proc/self/fd/5",
            "-chardev socket,id=stdout,fd=7 -device virtserialport,nr=1,chardev=stdout",
            "-chardev socket,id=files,fd=9 -device virtserialport,nr=4,chardev=files",
            "-chardev socket,id=console,fd=10 -serial chardev:console",
            "-m 1024",
            "-kernel /k/image",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        Ok(())
    }

    #[test]
    fn cables_and_disks_are_inherited() -> Result<()> {
        let (end, _other) = UnixStream::pair()?;
        let disk = tempfile::tempfile()?;
        let (cable_fd, disk_fd) = (end.as_raw_fd(), disk.as_raw_fd());
        let devices = Devices {
            cables: vec![Cable {
                end,
                mac: "52:54:00:77:00:01".into(),
            }],
            disks: vec![disk],
        };
        let args = devices.arguments();
        let has = |value: String| assert!(args.iter().any(|(_, v)| *v == value), "{args:?}");
        has(format!("stream,id=net0,addr.type=fd,addr.str={cable_fd}"));
        has("virtio-net-pci,netdev=net0,mac=52:54:00:77:00:01".into());
        has(format!(
            "if=none,id=disk0,format=raw,file=/proc/self/fd/{disk_fd},file.locking=off"
        ));
        Ok(())
    }
}
