//! Taking a snapshot of NFSv4 state.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nlmfo_common::Addr;
use nlmfo_common::state::{ClientRecord, ConnectionRecord, RangeRecord, StateRecord, kind};
use tracing::debug;

use super::StateTable;
use super::assemble::{ReadClient, assemble, is_same};
use super::info::Info;
use crate::kernel::connections::{self, Connection};
use crate::kernel::layout::LayoutError;
use crate::kernel::nfs4_clients::Clients;
use crate::kernel::nfsd::{Nfsd, NfsdError};
use crate::kernel::{self, state_layout};
use crate::observe::error::ObserveError;
use crate::observe::programs::Probe;
use crate::observe::snapshot::{BEGIN, Snapshots, record};

pub(in crate::observe) const PROBES: &[Probe] = &[
    Probe {
        program: "client_states",
        function: "states_start",
    },
    Probe {
        program: "state_shown",
        function: "states_next",
    },
];

const NETNS: &str = "nfsd_netns";

/// Why NFSv4 state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatesError {
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(
        "/proc/fs/nfsd belongs to another network namespace ({there}, this one is {here}): mount it \
         here (`mount -t nfsd nfsd /proc/fs/nfsd`)"
    )]
    OtherServer { here: u32, there: u64 },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the probe on states_start did not run while {path} was read")]
    Unseen { path: PathBuf },
    #[error("nfsd was loaded after nlmfo was started: run the command again")]
    Late,
    #[error("the lists of NFSv4 clients changed each time they were read")]
    Changing,
}

/// What a snapshot found.
#[derive(Clone, Debug, Default)]
pub struct StateSnapshot {
    pub table: StateTable,
    /// Whether nothing that matters changed while it was read.
    pub exact: bool,
    /// How often the states were read.
    pub passes: u32,
    pub took: Duration,
}

/// Whether the programs of this part are in the kernel.
#[derive(Debug, Default)]
pub(in crate::observe) struct Ready {
    netns: bool,
    probes: bool,
}

/// All clients as read once; none if a part of it was missed.
type Reading = Option<Vec<ReadClient>>;

impl Snapshots {
    /// What the NFSv4 clients of the server in network namespace `netns`, this process's own, hold.
    /// Taken again until it is exact or `max_wait` runs out. With `only`, it need only be exact for
    /// that VIP's clients, and those whose VIP is not known.
    ///
    /// For a server without clients this reads one empty directory.
    pub(crate) fn take_states(
        &mut self,
        netns: u32,
        only: Option<IpAddr>,
        max_wait: Duration,
    ) -> Result<StateSnapshot, StatesError> {
        let began = Instant::now();
        let Some(clients) = Clients::open()? else {
            return Ok(StateSnapshot {
                exact: true,
                took: began.elapsed(),
                ..StateSnapshot::default()
            });
        };
        self.ensure_own(&clients, netns)?;
        if !self.states.probes && !numbers(&clients)?.is_empty() {
            for probe in PROBES {
                self.programs().attach(probe)?;
            }
            self.states.probes = true;
        }
        let apart = self.has_stid_status();
        let mut passes = 0;
        let mut last = None;
        loop {
            passes += 1;
            if let Some((table, exact)) = self.states_pass(&clients, netns, only, apart)? {
                if exact {
                    return Ok(StateSnapshot {
                        table,
                        exact,
                        passes,
                        took: began.elapsed(),
                    });
                }
                last = Some(table);
            }
            if began.elapsed() >= max_wait {
                return Ok(StateSnapshot {
                    table: last.ok_or(StatesError::Changing)?,
                    exact: false,
                    passes,
                    took: began.elapsed(),
                });
            }
            debug!(passes, "NFSv4 state changed while it was read");
        }
    }

    /// Whether this kernel keeps a state's status apart from its type, as those do that
    /// revoke states.
    pub fn has_stid_status(&self) -> bool {
        self.layout().states.stid_status != 0
    }

    /// An error unless nfsd's filesystem belongs to our network namespace: an empty directory of
    /// another one proves nothing.
    fn ensure_own(&mut self, clients: &Clients, netns: u32) -> Result<(), StatesError> {
        if self.programs().layout.states.posix_ops == 0 {
            // Once more, for the error with its reason.
            state_layout::load()?;
            return Err(StatesError::Late);
        }
        if !self.states.netns {
            self.programs().load_runnable(NETNS)?;
            self.states.netns = true;
        }
        self.programs().run(BEGIN, &[1])?;
        let fd = clients.folder().as_raw_fd();
        self.programs().run(NETNS, &[fd as u64])?;
        match self.control()?.netns {
            there if there == u64::from(netns) => Ok(()),
            there => Err(StatesError::OtherServer { here: netns, there }),
        }
    }

    /// Reads states, locks and states again: the table and whether it is exact.
    fn states_pass(
        &mut self,
        clients: &Clients,
        netns: u32,
        only: Option<IpAddr>,
        apart: bool,
    ) -> Result<Option<(StateTable, bool)>, StatesError> {
        self.programs().run(BEGIN, &[1])?;
        let Some(first) = self.read_clients(clients)? else {
            return Ok(None);
        };
        if first.is_empty() {
            return Ok(Some((StateTable::default(), true)));
        }
        self.programs().run(BEGIN, &[1])?;
        let Some(ranges) = self.read_ranges(netns)? else {
            return Ok(None);
        };
        let waiters_cut = self.control()?.cut != 0;
        self.programs().run(BEGIN, &[1])?;
        let Some(second) = self.read_clients(clients)? else {
            return Ok(None);
        };
        let mut infos = HashMap::new();
        for client in &second {
            let info = clients
                .info(client.number)
                .map_err(|source| StatesError::Read {
                    path: clients.path(client.number).join("info"),
                    source,
                })?;
            infos.extend(info.map(|text| (client.number, Info::parse(&text))));
        }
        let (mut table, agree) = assemble(&second, &infos, &ranges, only, apart);
        table.waiters_cut = waiters_cut;
        Ok(Some((table, agree && is_same(&first, &second, only))))
    }

    fn read_clients(&mut self, clients: &Clients) -> Result<Reading, StatesError> {
        let mut all = Vec::new();
        let mut lines = 0;
        for number in numbers(clients)? {
            let failed = |source| StatesError::Read {
                path: clients.path(number).join("states"),
                source,
            };
            let Some(mut file) = clients.states(number).map_err(failed)? else {
                continue;
            };
            let mut read: Option<ReadClient> = None;
            loop {
                let length = file.read(&mut self.text).map_err(failed)?;
                let text = &self.text[..length];
                lines += text.iter().filter(|&&byte| byte == b'\n').count() as u64;
                while let Some(item) = self.records.next() {
                    if let Some(record) = record::<ClientRecord>(&item, kind::CLIENT) {
                        // Once more if the first state wanted a larger buffer.
                        read = Some(ReadClient {
                            number,
                            record,
                            connections: Vec::new(),
                            states: Vec::new(),
                        });
                    } else if let Some(read) = &mut read {
                        read.connections
                            .extend(record::<ConnectionRecord>(&item, kind::CONNECTION));
                        read.states
                            .extend(record::<StateRecord>(&item, kind::STATE));
                    }
                }
                if length == 0 {
                    break;
                }
            }
            match read {
                Some(mut read) => {
                    read.connections.sort_unstable();
                    all.push(read);
                }
                None if self.control()?.lost > 0 => return Ok(None),
                None => {
                    let path = clients.path(number).join("states");
                    return Err(StatesError::Unseen { path });
                }
            }
        }
        if all.iter().any(ReadClient::may_use_others) {
            let connections = nfs_connections()?;
            for client in all.iter_mut().filter(|client| client.may_use_others()) {
                add_connections(client, &connections);
            }
        }
        let control = self.control()?;
        // A line without a call of the probe is a state that we did not see.
        Ok((control.lost == 0 && lines <= control.shown).then_some(all))
    }

    /// The locks and leases that nfsd holds for clients of the namespace.
    fn read_ranges(&mut self, netns: u32) -> Result<Option<Vec<RangeRecord>>, StatesError> {
        let mut ranges: Vec<RangeRecord> = Vec::new();
        let walked = self.read_list(&mut ranges)?;
        if self.control()?.lost > 0 {
            return Ok(None);
        }
        // It may have been removed and added again between two runs.
        let mut seen = HashSet::with_capacity(ranges.len());
        let may_repeat = walked.longest.is_some() && walked.runs > 1;
        let mut held = ranges.iter().filter(|range| range.waits == 0);
        if may_repeat && !held.all(|range| seen.insert(range.fl)) {
            return Ok(None);
        }
        ranges.retain(|range| range.netns == netns);
        Ok(Some(ranges))
    }
}

/// The established TCP connections to the server in this thread's network namespace.
fn nfs_connections() -> Result<Vec<Connection>, StatesError> {
    let ports = Nfsd::mounted()?.tcp_ports()?;
    let all = connections::established(|_| true).map_err(|source| StatesError::Read {
        path: connections::PATH.into(),
        source,
    })?;
    let of_server = all
        .into_iter()
        .filter(|connection| ports.contains(&connection.port));
    Ok(of_server.collect())
}

/// Adds those from the client's address. They may be another client's of the same host: then the
/// client has a VIP too many.
fn add_connections(client: &mut ReadClient, connections: &[Connection]) {
    let address = client.record.address.ip();
    let ours = connections.iter().filter(|one| one.client == address);
    let vips: BTreeSet<IpAddr> = ours.map(|connection| connection.vip).collect();
    let at = client.record.client;
    client
        .connections
        .extend(vips.into_iter().map(|vip| ConnectionRecord {
            kind: kind::CONNECTION,
            pad: 0,
            client: at,
            vip: Addr::from(vip),
            peer: Addr::from(address),
        }));
    client.connections.sort_unstable();
}

fn numbers(clients: &Clients) -> Result<Vec<u64>, StatesError> {
    clients.numbers().map_err(|source| StatesError::Read {
        path: kernel::nfs4_clients::PATH.into(),
        source,
    })
}
