//! Moving a VIP's locks: phases as plans, their execution, and what they prove.

pub mod begun;
pub mod credit;
pub mod evidence;
pub mod exclusive;
mod failures;
pub mod interrupted;
pub mod kept;
pub mod nfs4;
pub mod nodes;
pub mod noted;
pub mod notification;
pub mod options;
pub mod own;
pub mod pair;
pub mod reclaim;
pub mod record;
pub mod release;
pub mod report;
pub mod run;
pub mod services;
pub mod takeover;
pub mod takeover_plan;
pub mod takeover_report;
pub mod targeted;
pub mod watch;
pub mod whole;
pub mod window;
