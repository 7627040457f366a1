//! ONC RPC (RFC 5531) as a client, for the three programs that lock failover
//! talks to: rpcbind, lockd's NLM, and lockd's private NSM notification.
//!
//! Calls go one at a time over a [`client::Client`], each with a deadline; many at
//! once means many clients. Errors name the call, the peer and what was waited for.

pub(crate) mod alive;
pub(crate) mod client;
pub mod message;
pub(crate) mod nfs4;
pub mod nlm;
pub mod nsm;
pub mod portmap;
pub(crate) mod registration;
pub mod xdr;
