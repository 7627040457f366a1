//! The same counts by Debian's bpftrace: calls per VIP and status, and the
//! latency of LOCK.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlmfo_common::layout::Layout;
use serde_json::Value;

use crate::guest::wait::{Seen, until_for};

/// Functions that both observers probe for a LOCK+UNLOCK pair.
const FUNCTIONS: [&str; 4] = [
    "nlmsvc_lock",
    "nlmsvc_unlock",
    "nlmsvc_cancel_blocked",
    "nlmsvc_testlock",
];

/// Compiling takes some 15 s under emulation.
const START: Duration = Duration::from_mins(2);

/// Removing its probes waits for every CPU and task, probe by probe.
const END: Duration = Duration::from_mins(5);

const KPROBES: &str = "/sys/kernel/debug/kprobes/list";

/// What it counted for one VIP.
pub struct Counted {
    pub granted: u64,
    pub unlocked: u64,
}

/// A bpftrace that counts. Dropping it kills it.
pub struct Bpftrace {
    child: Child,
    out: File,
    err: File,
}

impl Bpftrace {
    /// Returns when all of its probes are in place.
    pub fn start(layout: &Layout) -> Result<Bpftrace> {
        let out = tempfile::tempfile().context("file for bpftrace's output")?;
        let err = tempfile::tempfile().context("file for bpftrace's errors")?;
        let child = Command::new("bpftrace")
            .args(["-f", "json", "-e", &script(layout)])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?)
            .spawn()
            .context("cannot start bpftrace")?;
        let mut running = Bpftrace { child, out, err };
        until_for(START, "bpftrace to attach", || running.attached())?;
        Ok(running)
    }

    fn attached(&mut self) -> Result<Seen<()>> {
        if let Some(status) = self.child.try_wait()? {
            bail!("bpftrace ended: {status}: {}", contents(&mut self.err)?);
        }
        let list = fs::read_to_string(KPROBES).context(KPROBES)?;
        let missing = missing_probes(&list);
        Ok(match missing.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!("no probe yet on {missing:?}")),
        })
    }

    /// Ends it and reads what it counted.
    pub fn stop(mut self, vip: IpAddr) -> Result<Counted> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), Signal::SIGINT).context("interrupt bpftrace")?;
        until_for(END, "bpftrace to end", || {
            Ok(match self.child.try_wait()? {
                Some(_) => Seen::Yes(()),
                None => Seen::No("it still runs".into()),
            })
        })?;
        let said = contents(&mut self.out)?;
        let complained = contents(&mut self.err)?;
        ensure!(complained.is_empty(), "bpftrace complained: {complained}");
        Ok(Counted {
            granted: counted(&said, "@granted", vip)?,
            unlocked: counted(&said, "@unlocked", vip)?,
        })
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The functions without an armed kprobe and, for `nlmsvc_lock`, kretprobe.
/// Lines: address, `k` or `r`, function+offset, module, flags.
fn missing_probes(list: &str) -> Vec<&'static str> {
    let has = |kind: &str, function: &str| {
        list.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next() == Some(kind)
                && words.next().and_then(|at| at.split('+').next()) == Some(function)
                && !line.contains("[DISABLED]")
        })
    };
    let mut missing: Vec<_> = FUNCTIONS
        .into_iter()
        .filter(|function| !has("k", function))
        .collect();
    if !has("r", "nlmsvc_lock") {
        missing.push("nlmsvc_lock (return)");
    }
    missing
}

/// Where `sockaddr_in` has its address (include/uapi/linux/in.h).
const SIN_ADDR: u32 = 4;

/// As fast as bpftrace can: an IPv4 VIP is the four bytes of its address.
fn script(layout: &Layout) -> String {
    let vip = |host: &str| format!("*(uint32 *)({host} + {})", layout.host_srcaddr + SIN_ADDR);
    let of_lock = format!(
        "$owner = *(uint64 *)(arg2 + {});\n  $host = *(uint64 *)($owner + {});",
        layout.lock_fl + layout.fl_owner,
        layout.lockowner_host
    );
    format!(
        "kprobe:nlmsvc_lock {{
  @host[tid] = arg2;
  @began[tid] = nsecs;
  @reclaim[tid] = *(uint32 *)(reg(\"sp\") + 8);
}}
kretprobe:nlmsvc_lock /@host[tid]/ {{
  $host = @host[tid];
  $vip = {vip};
  if (retval == {granted}) {{
    if (@reclaim[tid]) {{ @reclaimed[$vip] = count(); }} else {{ @granted[$vip] = count(); }}
  }} else if (retval == {blocked}) {{ @blocked[$vip] = count(); }}
  else if (retval == {grace}) {{ @denied_grace[$vip] = count(); }}
  else {{ @denied[$vip] = count(); }}
  @latency[$vip] = hist(nsecs - @began[tid]);
  delete(@host[tid]);
  delete(@began[tid]);
  delete(@reclaim[tid]);
}}
kprobe:nlmsvc_unlock {{
  {of_lock}
  $vip = {vip};
  @unlocked[$vip] = count();
}}
kprobe:nlmsvc_cancel_blocked {{
  {of_lock}
  $vip = {vip};
  @cancelled[$vip] = count();
}}
kprobe:nlmsvc_testlock {{
  $host = arg2;
  $vip = {vip};
  @tested[$vip] = count();
}}
",
        vip = vip("$host"),
        granted = 0,
        blocked = 3u32.swap_bytes(),
        grace = 4u32.swap_bytes(),
    )
}

/// A count out of bpftrace's JSON lines; 0 where it has none.
fn counted(said: &str, map: &str, vip: IpAddr) -> Result<u64> {
    let IpAddr::V4(vip) = vip else {
        bail!("the script counts IPv4 VIPs only");
    };
    let key = u32::from_ne_bytes(vip.octets()).to_string();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        let line: Value =
            serde_json::from_str(line).with_context(|| format!("bpftrace said {line:?}"))?;
        if let Some(count) = line["data"][map][&key].as_u64() {
            return Ok(count);
        }
    }
    Ok(0)
}

fn contents(file: &mut File) -> Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_counts_when_it_is_armed() {
        let mut list = String::new();
        for function in FUNCTIONS {
            list += &format!("ffffffffc0a1b2c0  k  {function}+0x0  [lockd]  [FTRACE]\n");
        }
        assert_eq!(missing_probes(&list), ["nlmsvc_lock (return)"]);
        list += "ffffffffc0a1b2c0  r  nlmsvc_lock+0x0  [lockd]  [DISABLED][FTRACE]\n";
        assert_eq!(missing_probes(&list).len(), 1);
        list += "ffffffffc0a1b2c0  r  nlmsvc_lock+0x0  [lockd]  [FTRACE]\n";
        assert!(missing_probes(&list).is_empty());
    }

    #[test]
    fn counts_are_found_by_map_and_vip() {
        let vip = "10.77.0.1".parse().unwrap();
        let said = r#"{"type": "attached_probes", "data": {"probes": 5}}

{"type": "map", "data": {"@granted": {"16796938": 7, "1": 9}}}
"#;
        assert_eq!(counted(said, "@granted", vip).unwrap(), 7);
        assert_eq!(counted(said, "@unlocked", vip).unwrap(), 0);
        assert!(counted("no JSON", "@granted", vip).is_err());
    }
}
