//! Moving a VIP's locks: phases as plans, their execution, and what they prove.

pub mod credit;
pub mod evidence;
pub mod exclusive;
pub mod reclaim;
pub mod record;
pub mod release;
pub mod report;
pub mod takeover;
pub mod takeover_report;
pub mod watch;
pub mod window;
