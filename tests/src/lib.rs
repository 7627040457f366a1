//! What the lab scenarios share.
