//! NFSv4 clients, as `nlmfo clients` lists them: nfsd knows them all, so they need no book.

use serde::Serialize;

use super::clients::ago;
use crate::causes::chain;
use crate::observe::states::Counts4;
use crate::observe::states::describe::ClientLine4;
use crate::observe::states::take::{StateSnapshot, StatesError};

/// `nfs4` in the JSON of `nlmfo clients`.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Nfs4Clients {
    /// They were not asked for.
    LeftOut,
    /// They could not be read.
    Unknown { reason: String },
    Read {
        /// Whether nothing changed while they were read.
        exact: bool,
        clients: Vec<Row>,
    },
}

#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    client: ClientLine4,
    held: Counts4,
}

impl From<Result<StateSnapshot, StatesError>> for Nfs4Clients {
    fn from(seen: Result<StateSnapshot, StatesError>) -> Self {
        let snapshot = match seen {
            Ok(snapshot) => snapshot,
            Err(error) => {
                return Nfs4Clients::Unknown {
                    reason: chain(&error),
                };
            }
        };
        let clients = snapshot.table.clients.iter().map(ClientLine4::from);
        Nfs4Clients::Read {
            exact: snapshot.exact,
            clients: (clients.zip(snapshot.table.counts_of_each()))
                .map(|(client, held)| Row { client, held })
                .collect(),
        }
    }
}

impl Nfs4Clients {
    /// Keeps only the clients that `keep` accepts.
    pub fn retain(&mut self, keep: impl Fn(&ClientLine4) -> bool) {
        if let Nfs4Clients::Read { clients, .. } = self {
            clients.retain(|row| keep(&row.client));
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = [String; 7]> + Clone {
        let rows = match self {
            Nfs4Clients::Read { clients, .. } => clients.as_slice(),
            _ => &[],
        };
        rows.iter().map(Row::cells)
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let (client, held) = (&self.client, &self.held);
        let all = held.opens + held.locks + held.delegations + held.layouts + held.others;
        let seen = client.info.renewed_seconds.map_or("?".to_owned(), ago);
        [
            client.vips_text(),
            client.client.to_string(),
            client.client_name.to_string(),
            format!("NFSv4.{}", client.minor),
            all.to_string(),
            "-".to_owned(),
            match client.info.status.as_str() {
                "" | "confirmed" => seen,
                other => format!("{seen}, {other}"),
            },
        ]
    }
}
