//! What is wrong with a message.

/// Why a message is not XDR of the expected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} is {length} bytes long, but the protocol's limit is {max}")]
    TooLong {
        what: &'static str,
        length: usize,
        max: usize,
    },
    #[error("the message ends inside {what}: {wanted} bytes wanted, {left} left")]
    Short {
        what: &'static str,
        wanted: usize,
        left: usize,
    },
    #[error("{what} has the unknown value {number}")]
    Unknown { what: &'static str, number: u32 },
    #[error("{what} is {value}, which exceeds the 32 bits of NLM v1 and v3")]
    TooLarge { what: &'static str, value: u64 },
    #[error("{extra} bytes follow the end of the message")]
    Trailing { extra: usize },
}
