//! `nlmfo doctor`: whether a move is possible now, and what would be lost.

use std::ffi::OsString;

use super::{peer, require_root};
use crate::cli::DoctorArgs;
use crate::cli::version::{COMMIT, VERSION};
use crate::exit::{Exit, Failure};
use crate::failover::nodes::page::{Page, PeerPage};
use crate::failover::nodes::peer::{Compared, Peer};
use crate::failover::nodes::side::Side;
use crate::notify::state_dir::StateDir;
use crate::output;
use crate::times::now_milliseconds;

pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    require_root()?;
    let state = StateDir::new(&args.state.state_dir);
    let here = Side::look(&args.vip, &state, &format!("{VERSION} ({COMMIT})"))?;
    let peer = match peer::of(&args.peer)? {
        Some(peer) => Some(compared(&here, &peer, &state)?),
        None => None,
    };
    let page = Page::new(here, peer);
    match args.json {
        true => output::list_json(&page).map(drop)?,
        false => output::list(|out| page.write(out))?,
    }
    Ok(page.exit())
}

/// Asks the other node for its side.
fn compared(here: &Side, peer: &Peer, state: &StateDir) -> Result<PeerPage, Failure> {
    let mut arguments: Vec<OsString> = ["doctor", "--json", "--state-dir"].map(Into::into).into();
    arguments.push(state.path().into());
    for vip in here.outlooks.iter().flat_map(|outlook| &outlook.vips) {
        arguments.extend(["--vip".into(), vip.to_string().into()]);
    }
    let asked = now_milliseconds();
    let answer = peer.ask(&arguments)?;
    let times = (asked, now_milliseconds());
    let compared = Compared::of(peer.host(), answer);
    PeerPage::of(here, compared, times).map_err(|error| Failure::new(Exit::Usage, error))
}
