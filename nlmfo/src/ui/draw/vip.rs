//! One VIP: its clients, what each waits for, has reserved and holds, and how long LOCK
//! calls took.

use std::net::IpAddr;

use ratatui::text::{Line as Text, Span};

use super::theme::Theme;
use super::{Canvas, histogram, overview, text};
use crate::observe::counters::nfs4::Counters4;
use crate::observe::states::{Access, Kind};
use crate::observe::table::Range;
use crate::ticks::detail::{Detail, HeldLine, Since};
use crate::ticks::states::StateLine4;
use crate::ui::state::{App, Line};

/// From this width on the histogram is beside the locks.
const WIDE: usize = 150;

/// From this height on it is below them.
const HIGH: u16 = 17;

/// Cells before a file's name.
const BEFORE_FILE: usize = 2 + 13 + 16 + 11 + 6 + 6 + 1;

pub(super) fn draw(app: &App, theme: &Theme, vip: IpAddr, line: usize, canvas: &mut Canvas) {
    let Some(tick) = app.world().vip(vip) else {
        canvas.line(format!(
            "{vip} has no locks and was not used since; Esc goes back"
        ));
        return;
    };
    let state = theme.state(&tick.state);
    let title = vec![
        Span::styled(vip.to_string(), theme.bold()),
        Span::raw("  "),
        Span::styled(state.text(), state.style),
        Span::raw(format!(
            "  held: {}  waiting: {}  shares: {}  clients: {}",
            text::count(tick.held),
            text::count(tick.waiting()),
            text::count(tick.shares),
            text::count(tick.clients)
        )),
    ];
    canvas.line_and_right(title, super::filter(app, theme));
    canvas.line(overview::what_goes_on(tick));
    if let Some(held) = tick.held4.filter(|held| held.clients > 0) {
        canvas.line(format!("NFSv4: {held}"));
    }
    if let Some(nfs4) = tick.nfs4.filter(|nfs4| *nfs4 != Counters4::default()) {
        canvas.line(of_nfs4(&nfs4));
    }

    let buckets = &tick.counters.latency_ns_log2;
    if canvas.width() >= WIDE {
        let mut beside = canvas.area;
        let width = histogram::WIDTH as u16;
        canvas.area.width -= width + 2;
        beside.x += canvas.area.width + 2;
        beside.width = width;
        let mut beside = Canvas {
            area: beside,
            buffer: canvas.buffer,
        };
        histogram::draw(buckets, 10, theme, &mut beside);
    } else if canvas.area.height >= HIGH {
        let mut below = Canvas {
            area: canvas.take_bottom(6),
            buffer: canvas.buffer,
        };
        histogram::draw(buckets, 4, theme, &mut below);
    }

    canvas.line(Span::styled(headings(), theme.headings()));
    let lines = app.vip_lines(vip);
    let width = canvas.width();
    let now = app.world().tick.as_ref().map_or(0, |tick| tick.elapsed_ms);
    let Some(detail) = app.world().details.get(&vip).filter(|_| !lines.is_empty()) else {
        canvas.line(match app.filter() {
            "" => "No locks, waiters or shares.",
            _ => "Nothing matches the filter.",
        });
        return;
    };
    canvas.list(lines.len(), line, |place| {
        one(lines[place], detail, now, width, theme)
    });
}

fn headings() -> String {
    format!(
        "  {:<12} {:<15} {:>10} {:>5} {:>5} FILE",
        "WHAT", "RANGE", "SVID", "AGE", "WAIT"
    )
}

fn one<'a>(line: Line, detail: &Detail, now: u64, width: usize, theme: &Theme) -> Text<'a> {
    match line {
        Line::Client(place) => {
            let client = &detail.clients[place];
            let version = format!("NLM{}/{}", client.version, client.transport);
            of_client(client.client, &client.name, &version, client.held, theme)
        }
        Line::Lock(place) => of_lock(&detail.locks[place], now, width, theme),
        Line::Waiter(place) => {
            let waiter = &detail.waiters[place];
            let state = if waiter.granted { "granted" } else { "waits" };
            let cells = Waits {
                what: format!("{state} {}", waiter.mode),
                range: waiter.range,
                svid: waiter.svid.to_string(),
                holder: waiter.holder,
                file: &waiter.file,
            };
            cells.line(width, theme)
        }
        Line::Waiter4(client, place) => {
            let waiter = &detail.nfs4[client].waiters[place];
            let cells = Waits {
                what: format!("waits {}", waiter.mode),
                range: waiter.range,
                svid: "-".to_owned(),
                holder: waiter.holder,
                file: &waiter.file,
            };
            cells.line(width, theme)
        }
        Line::Share(place) => {
            let share = &detail.shares[place];
            let what = format!("share {} {}", access(share.access), access(share.deny));
            Text::raw(Cells::new(what, "-".to_owned(), &share.file).line(width, theme))
        }
        Line::Client4(place) => {
            let client = &detail.nfs4[place];
            let version = format!("NFSv4.{}", client.minor);
            let version = match client.connected {
                true => version,
                false => format!("{version}, not connected, last seen here"),
            };
            of_client(client.client, &client.name, &version, client.held, theme)
        }
        Line::State(client, place) => {
            let cells = of_state(&detail.nfs4[client].lines[place]);
            Text::raw(cells.line(width, theme))
        }
        Line::More(count) => {
            let text = format!("  and {count} more");
            Text::styled(text, theme.dim())
        }
    }
}

fn of_client<'a>(address: IpAddr, name: &str, version: &str, held: u64, theme: &Theme) -> Text<'a> {
    let name = text::without_middle(name, 30, theme.ascii);
    Text::styled(
        format!("{address} {name} {version}  {held} held"),
        theme.bold(),
    )
}

fn of_lock<'a>(lock: &HeldLine, now: u64, width: usize, theme: &Theme) -> Text<'a> {
    let cells = Cells {
        svid: lock.svid.to_string(),
        age: lock
            .since
            .map(|since| age(since, now, theme))
            .unwrap_or_default(),
        behind: match lock.behind {
            0 => String::new(),
            behind => text::count(behind),
        },
        ..Cells::new(lock.mode.to_string(), lock.range.to_string(), &lock.file)
    };
    let style = match lock.behind {
        0 => ratatui::style::Style::new(),
        _ => theme.coloured(ratatui::style::Color::Yellow),
    };
    Text::styled(cells.line(width, theme), style)
}

/// A blocked request.
struct Waits<'a> {
    what: String,
    range: Range,
    svid: String,
    holder: Option<IpAddr>,
    file: &'a str,
}

impl Waits<'_> {
    fn line<'a>(self, width: usize, theme: &Theme) -> Text<'a> {
        let holder = (self.holder).map_or_else(String::new, |holder| format!("for {holder} "));
        let range = text::without_middle(&self.range.to_string(), 15, theme.ascii);
        let line = format!(
            "  {:<12} {range:<15} {:>10} {holder:<12}",
            self.what, self.svid
        );
        let file = width.saturating_sub(line.len());
        let file = text::without_head(self.file, file, theme.ascii);
        let style = theme.coloured(ratatui::style::Color::Yellow);
        Text::styled(line + &file, style)
    }
}

fn of_state(state: &StateLine4) -> Cells<'_> {
    let what = match state.kind {
        Kind::Lock if state.access.write => "write".to_owned(),
        Kind::Lock => "read".to_owned(),
        kind => kind.to_string(),
    };
    let range = match (state.range, state.deny == Access::default()) {
        (Some(range), _) => range.to_string(),
        (None, true) => bits(state.access).to_owned(),
        (None, false) => format!("{} deny {}", bits(state.access), bits(state.deny)),
    };
    Cells::new(what, range, &state.file)
}

/// The cells of a line, unchanged.
struct Cells<'a> {
    what: String,
    range: String,
    svid: String,
    age: String,
    behind: String,
    file: &'a str,
}

impl<'a> Cells<'a> {
    /// Without an svid, an age or waiters.
    fn new(what: String, range: String, file: &'a str) -> Self {
        Cells {
            what,
            range,
            svid: "-".to_owned(),
            age: String::new(),
            behind: String::new(),
            file,
        }
    }

    fn line(&self, width: usize, theme: &Theme) -> String {
        let range = text::without_middle(&self.range, 15, theme.ascii);
        let file = text::without_head(self.file, width.saturating_sub(BEFORE_FILE), theme.ascii);
        format!(
            "  {:<12} {range:<15} {:>10} {:>5} {:>5} {file}",
            self.what, self.svid, self.age, self.behind
        )
    }
}

/// What an NFSv4 state allows, or denies others.
fn bits(of: Access) -> &'static str {
    access(u32::from(of.read) | u32::from(of.write) << 1)
}

/// What a share is for, or denies others.
fn access(bits: u32) -> &'static str {
    match bits {
        0 => "-",
        1 => "r",
        2 => "w",
        _ => "rw",
    }
}

fn age(since: Since, now: u64, theme: &Theme) -> String {
    let at_least = match since.or_before {
        true => theme.either("≥", ">"),
        false => "",
    };
    format!("{at_least}{}", text::age(now.saturating_sub(since.ms)))
}

fn of_nfs4(counters: &Counters4) -> String {
    let Counters4 {
        opens,
        locks,
        locks_denied,
        delegations,
        recalled,
        clients_ended,
        ..
    } = counters;
    format!(
        "NFSv4 calls: {opens} opens, {locks} locks, {locks_denied} denied, {} reclaimed, {} in grace; \
         {delegations} delegations, {recalled} recalled; {clients_ended} clients ended",
        counters.opens_reclaimed + counters.locks_reclaimed,
        counters.opens_in_grace + counters.locks_in_grace,
    )
}
