//! `clients/N/info`: what nfsd says of a client as text.

use serde::{Deserialize, Serialize};

/// The parts that no other file or record provides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Info {
    /// `confirmed`, `unconfirmed`, `courtesy` (its lease is over, and its state is kept until another
    /// client wants it) or `expirable`; empty if the kernel does not say.
    pub status: String,
    /// Since the client renewed its lease last.
    pub renewed_seconds: Option<u64>,
    /// Whether nfsd reaches the client to recall delegations: `UP`, `DOWN`, `FAULT`,
    /// `UNKNOWN`.
    pub callback: Option<String>,
}

impl Info {
    /// One `key: value` a line; what a client chose is quoted and escaped.
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let value = |wanted: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once(": "));
            pairs
                .into_iter()
                .find_map(|(key, value)| (key == wanted).then_some(value))
        };
        Info {
            status: value("status").unwrap_or_default().to_owned(),
            renewed_seconds: value("seconds from last renew").and_then(|value| value.parse().ok()),
            callback: value("callback state").map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_6_1_and_7_3_print_is_read() {
        let text = b"clientid: 0x1db9f0666ae4a0c1\naddress: \"10.77.1.1:783\"\n\
            status: courtesy\nseconds from last renew: 17\n\
            name: \"status: confirmed\\x0astatus: x\"\nminor version: 1\n\
            callback state: UP\ncallback address: \"10.77.1.1:0\"\nadmin-revoked states: 0\n\
            session slots: 10\n";
        let expected = Info {
            status: "courtesy".into(),
            renewed_seconds: Some(17),
            callback: Some("UP".into()),
        };
        assert_eq!(Info::parse(text), expected);
        assert_eq!(Info::parse(b"clientid: 0x1\n"), Info::default());
    }
}
