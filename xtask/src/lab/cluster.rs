//! A cluster: servers, and the driver that all of them are cabled to. Each is a machine with a kernel
//! of its own, so that one can end while the others continue.

use std::{fs::File, os::unix::net::UnixStream};

use anyhow::{Context as _, Result};

use super::{
    qemu::{Cable, Devices},
    run::{Ending, Outcome, Run},
};

/// What to boot, and what the machines have in common.
///
/// The driver's `eth0` leads to the first server's `eth0`, its `eth1` to the second's, and so on: it is
/// the switch, if it makes a bridge of them. The servers share the disks (`/dev/vda` on), which are not
/// kept. They must ensure that only one of them uses a disk at a time.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its command's end, or its deadline, is the end of the whole run.
    pub driver: Run,
    /// Their files and exit statuses do not count, and they may end at any time.
    pub servers: Vec<Run>,
    /// The disks' sizes in bytes.
    pub disks: Vec<u64>,
}

/// The result of a cluster's run.
#[derive(Clone, Debug)]
pub struct ClusterOutcome {
    pub driver: Outcome,
    /// In the cluster's order.
    pub servers: Vec<Outcome>,
}

impl Cluster {
    /// The machines, the driver first, each with its cables and disks.
    pub(super) fn members(&self) -> Result<Vec<(&Run, Devices)>> {
        let disks = self
            .disks
            .iter()
            .map(|size| {
                let disk = tempfile::tempfile()?;
                disk.set_len(*size)?;
                Ok(disk)
            })
            .collect::<Result<Vec<File>>>()
            .context("create the cluster's disks")?;
        let mut driver = Devices::default();
        let mut servers = Vec::new();
        for (number, run) in self.servers.iter().enumerate() {
            let (near, far) = UnixStream::pair().context("create a cable")?;
            driver.cables.push(Cable {
                end: near,
                mac: format!("52:54:00:77:00:{number:02x}"),
            });
            let cable = Cable {
                end: far,
                mac: format!("52:54:00:77:01:{number:02x}"),
            };
            let shared = disks.iter().map(File::try_clone);
            let devices = Devices {
                cables: vec![cable],
                disks: shared
                    .collect::<Result<_, _>>()
                    .context("duplicate a disk's file")?,
            };
            servers.push((run, devices));
        }
        let mut members = vec![(&self.driver, driver)];
        members.extend(servers);
        Ok(members)
    }
}

impl ClusterOutcome {
    /// Takes outcomes in the order of [`Cluster::members`].
    pub(super) fn of(outcomes: Vec<Outcome>) -> Result<Self> {
        let mut outcomes = outcomes.into_iter();
        Ok(Self {
            driver: outcomes.next().context("a cluster without a driver")?,
            servers: outcomes.collect(),
        })
    }

    /// The driver's status; an error that shows the console's end if it has none, or if
    /// any kernel was in trouble.
    pub fn status(&self) -> Result<i32> {
        for (number, server) in self.servers.iter().enumerate() {
            if matches!(server.ending, Ending::Trouble(_)) {
                server
                    .status()
                    .with_context(|| format!("server {number} of the cluster"))?;
            }
        }
        self.driver.status()
    }

    /// As [`Outcome::is_emulators_fault`], of any machine.
    pub fn is_emulators_fault(&self) -> bool {
        let mut all = self.servers.iter().chain([&self.driver]);
        all.any(Outcome::is_emulators_fault)
    }
}
