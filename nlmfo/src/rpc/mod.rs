//! A client of ONC RPC (RFC 5531) for the programs that lock failover calls: rpcbind, lockd's NLM,
//! lockd's private NSM notification, and nfsd's `EXCHANGE_ID`.
//!
//! A [`client::Client`] makes one call at a time, each with a deadline; parallel calls need several
//! clients. Errors name the call, the peer and what was waited for.

pub(crate) mod alive;
pub(crate) mod client;
pub mod message;
pub(crate) mod nfs4;
pub mod nlm;
pub mod nsm;
pub mod portmap;
pub(crate) mod registration;
pub mod xdr;
