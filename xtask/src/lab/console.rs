//! Reads the guest's kernel console and finds messages of a kernel fault.

/// Messages after which a result from this kernel cannot be trusted.
///
/// From kernel/panic.c, init/initramfs.c, arch/x86/kernel/dumpstack.c, lib/bug.c,
/// `kernel/rcu/tree_stall.h`, kernel/watchdog.c, `kernel/hung_task.c`,
/// kernel/locking/lockdep.c and mm/kasan, 6.1 to 7.3.
const TROUBLE: [(&str, &str); 14] = [
    ("Kernel panic - not syncing", "kernel panic"),
    ("BUG: soft lockup", "soft lockup"),
    ("watchdog: Watchdog detected hard LOCKUP", "hard lockup"),
    ("BUG: workqueue lockup", "workqueue lockup"),
    ("BUG: ", "kernel bug"),
    ("kernel BUG at ", "kernel bug"),
    ("Oops: ", "oops"),
    ("general protection fault", "oops"),
    ("detected stalls on CPUs/tasks", "RCU stall"),
    ("self-detected stall on CPU", "RCU stall"),
    ("rcu_preempt kthread starved", "RCU stall"),
    (" blocked for more than ", "hung task"),
    ("possible circular locking dependency", "lock order"),
    (
        "Initramfs unpacking failed",
        "the guest has too little memory for its root filesystem",
    ),
];

/// The fault that a console line reports, if any.
pub fn trouble(line: &str) -> Option<&'static str> {
    TROUBLE
        .iter()
        .find(|(sign, _)| stands_in(line, sign))
        .map(|(_, what)| *what)
}

/// Whether the trouble on the console is the emulator's fault, or its host's, and most
/// likely not the kernel's. A run is then worth another try.
///
/// An exception at a five-byte nop, which no processor raises. The kernel patches its static
/// keys there while other processors run, and QEMU with a thread per processor trips over
/// that: seen once in some 130 boots, in `inet_ehashfn` of 6.12.
///
/// A stall because a timer has not woken RCU's own thread (`kernel/rcu/tree_stall.h`, 6.1): a
/// processor that a busy host has left without time. Seen once, in the boot of 6.1.192.
pub fn is_emulators_fault(console: &[String]) -> bool {
    console.iter().any(|line| {
        line.contains("Code: ") && line.contains("<0f> 1f 44 00 00")
            || line.contains("kthread timer wakeup didn't happen for")
    })
}

/// Whether `sign` occurs other than as the end of a longer word ("DEBUG: ").
fn stands_in(line: &str, sign: &str) -> bool {
    line.match_indices(sign).any(|(at, _)| {
        let joined =
            sign.starts_with(char::is_alphanumeric) && line[..at].ends_with(char::is_alphanumeric);
        !joined
    })
}

/// Cuts a stream of bytes into lines, without terminal escapes or carriage
/// returns (firmware and the serial console emit both).
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// The lines that `bytes` completes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            lines.push(clean(&line));
        }
        lines
    }

    /// The text after the last newline.
    pub fn rest(&mut self) -> Option<String> {
        let line = clean(&std::mem::take(&mut self.pending));
        (!line.is_empty()).then_some(line)
    }
}

fn clean(line: &[u8]) -> String {
    let mut text = String::new();
    let decoded = String::from_utf8_lossy(line);
    let mut chars = decoded.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\x1b' => drop(chars.next()),
            '\t' => text.push(c),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_trouble_is_recognised() {
        for (line, what) in [
            (
                "[    3.1] Kernel panic - not syncing: Attempted to kill init!",
                "kernel panic",
            ),
            (
                "[   40.2] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [nfsd:211]",
                "soft lockup",
            ),
            (
                "[   12.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
                "kernel bug",
            ),
            ("[   12.0] Oops: 0000 [#1] PREEMPT SMP NOPTI", "oops"),
            ("[   12.0] Oops: Oops: 0002 [#1] SMP NOPTI", "oops"),
            (
                "[   60.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "RCU stall",
            ),
            (
                "[   60.0] rcu: INFO: rcu_sched self-detected stall on CPU",
                "RCU stall",
            ),
            (
                "[  242.1] INFO: task lockd:230 blocked for more than 120 seconds.",
                "hung task",
            ),
            (
                "[    0.9] Initramfs unpacking failed: write error",
                "the guest has too little memory for its root filesystem",
            ),
            (
                "[    5.5] kernel BUG at fs/lockd/svclock.c:123!",
                "kernel bug",
            ),
        ] {
            assert_eq!(trouble(line), Some(what), "{line}");
        }
    }

    #[test]
    fn an_exception_at_a_nop_is_the_emulators() {
        let trace = |code: &str| vec!["[   10.9] RIP: 0010:f+0x33/0x120".into(), code.into()];
        assert!(is_emulators_fault(&trace(
            "[   10.9] Code: 08 45 89 c5 <0f> 1f 44 00 00 41 8b 86 58 01 00 00"
        )));
        assert!(!is_emulators_fault(&trace(
            "[   10.9] Code: 0f 1f 44 00 00 <48> 8b 45 00 41 8b 86 58 01 00 00"
        )));
    }

    #[test]
    fn a_processor_without_time_is_the_hosts() {
        let stall = |line: &str| vec![format!("[   25.2] rcu: \t{line}")];
        assert!(is_emulators_fault(&stall(
            "rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies! g-1151 f0x0"
        )));
        assert!(!is_emulators_fault(&stall("1-...!: (5250 ticks this GP)")));
    }

    #[test]
    fn ordinary_lines_are_no_trouble() {
        for line in [
            "[    0.0] Linux version 6.1.0-56-cloud-amd64 (builder@example.org)",
            "[    1.0] RCU Tasks Rude: Setting shift to 1 and lim to 1",
            "[    1.0] Spectre V2 : Mitigation: Retpolines",
            "[    2.0] WARNING: CPU: 0 PID: 1 at kernel/trace/trace.c:1",
            "[    2.0] nfsd: last server has exited, flushing export cache",
            "DEBUG: nothing",
        ] {
            assert_eq!(trouble(line), None, "{line}");
        }
    }

    #[test]
    fn lines_are_cut_and_cleaned() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"\x1bc\x1b[?7l\x1b[2Jone\r\nt"), ["one"]);
        assert_eq!(lines.push(b"wo\n\xff\n"), ["two", "\u{fffd}"]);
        assert_eq!(lines.push(b"end"), Vec::<String>::new());
        assert_eq!(lines.rest().as_deref(), Some("end"));
        assert_eq!(lines.rest(), None);
    }
}
