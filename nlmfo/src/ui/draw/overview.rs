//! A row per VIP, and more of the selected one below.

use std::net::IpAddr;

use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

use super::theme::Theme;
use super::{Canvas, text};
use crate::observe::states::Counts4;
use crate::ticks::events::causes;
use crate::ticks::latency;
use crate::ticks::tick::VipTick;
use crate::ticks::world::{HISTORY, Series};
use crate::ui::state::{App, Sort};

/// Below this height, only the rows are shown.
const ROOM_FOR_MORE: u16 = 12;

/// The optional columns that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    vip: usize,
    nfs4: bool,
    shares: bool,
    latency: bool,
    history: usize,
}

/// Width of the columns that are always shown, except that of the VIP, with their gaps.
const ALWAYS: usize = 7 + 5 + 5 + 8 + 7 + 7 + 1 + 21;
const NFS4: usize = 7;
const SHARES: usize = 7;
const LATENCY: usize = 14;

impl Columns {
    /// The VIP's column is as wide as its widest cell, if there is room for that.
    fn for_width(width: usize, widest: usize) -> Self {
        let mut left = width.saturating_sub(ALWAYS);
        let widest = widest.max("VIP".len());
        let mut columns = Columns {
            vip: 0,
            nfs4: false,
            shares: false,
            latency: false,
            history: 0,
        };
        // A truncated address is better than a missing percentile.
        let least = widest.min(19);
        if left >= least + LATENCY {
            columns.latency = true;
            left -= LATENCY;
        }
        if left >= least + NFS4 {
            columns.nfs4 = true;
            left -= NFS4;
        }
        if left >= least + SHARES {
            columns.shares = true;
            left -= SHARES;
        }
        columns.vip = widest.min(left);
        left -= columns.vip;
        if left >= 10 {
            columns.history = (left - 2).min(HISTORY);
        }
        columns
    }
}

pub(super) fn draw(app: &App, theme: &Theme, canvas: &mut Canvas) {
    let rows = app.rows();
    let selected = app.selected(&rows);
    let widest = rows.iter().map(|row| row.vip.to_string().len()).max();
    let columns = Columns::for_width(canvas.width(), widest.unwrap_or(0));
    if let Some(line) = not_connected(app) {
        let mut bottom = Canvas {
            area: canvas.take_bottom(1),
            buffer: canvas.buffer,
        };
        bottom.line(Span::styled(line, theme.coloured(Color::Yellow)));
    }
    let below = (canvas.area.height >= ROOM_FOR_MORE).then(|| canvas.take_bottom(3));

    let sort = match app.sort {
        Sort::Vip => String::new(),
        other => format!(" by {} ", other.name()),
    };
    let mut notes = super::filter(app, theme);
    notes.push_span(Span::styled(sort, theme.bold().reversed()));
    let headings = Line::styled(headings(&columns), theme.headings());
    canvas.line_and_right(headings, notes);
    if rows.is_empty() {
        canvas.line(match app.world().vips().is_empty() {
            true => "No VIP has locks, waiters or shares, or was used since the watch started.",
            false => "No VIP matches the filter; Esc clears it.",
        });
    }
    canvas.list(rows.len(), selected, |place| {
        let series = app.world().series.get(&rows[place].vip);
        row(rows[place], series, &columns, theme)
    });
    if let Some(area) = below
        && let Some(vip) = rows.get(selected)
    {
        let mut canvas = Canvas {
            area,
            buffer: canvas.buffer,
        };
        more(app, vip, theme, &mut canvas);
    }
}

fn headings(columns: &Columns) -> String {
    let mut line = format!("{:<1$}", "VIP", columns.vip);
    line += &format!("{:>7}{:>5}", "HELD", "WAIT");
    if columns.shares {
        line += &format!("{:>7}", "SHARES");
    }
    if columns.nfs4 {
        line += &format!("{:>7}", "NFSV4");
    }
    line += &format!("{:>5}{:>8}{:>7}{:>7}", "CLI", "GRANT/s", "REL/s", "DENY/s");
    if columns.latency {
        line += &format!("{:>7}{:>7}", "p50", "p99");
    }
    line += &format!(" {:<21}", "STATE");
    if columns.history > 0 {
        line += &format!("  {:<1$}", "GRANT+REL", columns.history);
    }
    line
}

fn row<'a>(vip: &VipTick, series: Option<&Series>, columns: &Columns, theme: &Theme) -> Line<'a> {
    let empty = Series::default();
    let series = series.unwrap_or(&empty);
    let name = text::without_middle(&vip.vip.to_string(), columns.vip, theme.ascii);
    let mut line = format!("{name:<0$}", columns.vip);
    line += &format!(
        "{:>7}{:>5}",
        text::count(vip.held),
        text::count(vip.waiting())
    );
    if columns.shares {
        line += &format!("{:>7}", text::count(vip.shares));
    }
    if columns.nfs4 {
        line += &format!("{:>7}", states(vip));
    }
    line += &format!(
        "{:>5}{:>8}{:>7}{:>7}",
        text::count(vip.clients),
        text::rate(series.rates.granted),
        text::rate(series.rates.released),
        text::rate(series.rates.denied)
    );
    if columns.latency {
        let (half, most) = percentiles(series, theme);
        line += &format!("{half:>7}{most:>7}");
    }
    let state = theme.state(&vip.state);
    let mut spans = vec![
        Span::raw(line + " "),
        Span::styled(format!("{:<21}", state.text()), state.style),
    ];
    if columns.history > 0 {
        let history = sparkline(series, columns.history, theme);
        spans.push(Span::raw(format!("  {history}")));
    }
    Line::from(spans)
}

/// The first NFSv4 client without a connection, and how many more there are.
fn not_connected(app: &App) -> Option<String> {
    let clients = &app.world().tick.as_ref()?.not_connected;
    let first = clients.first()?;
    Some(match clients.len() - 1 {
        0 => first.to_string(),
        more => format!("{first}; and {more} more"),
    })
}

/// How much NFSv4 clients hold.
fn states(vip: &VipTick) -> String {
    match vip.held4 {
        Some(_) if vip.last_held4 != Counts4::default() => vip.held4_text(),
        Some(held) => text::count(held.total() as u64),
        None => "-".to_owned(),
    }
}

fn sparkline(series: &Series, width: usize, theme: &Theme) -> String {
    text::sparkline(series.history.iter().copied(), width, theme.bars())
}

fn percentiles(series: &Series, theme: &Theme) -> (String, String) {
    let (half, most) = series.percentiles();
    let text = |time| match time {
        Some(time) => latency::short(time, theme.ascii),
        None => "-".to_owned(),
    };
    (text(half), text(most))
}

/// Three lines with more on the selected row.
fn more(app: &App, vip: &VipTick, theme: &Theme, canvas: &mut Canvas) {
    let rule = theme.either("─", "-").repeat(canvas.width());
    canvas.line(Span::styled(rule, theme.dim()));
    let empty = Series::default();
    let series = app.world().series.get(&vip.vip).unwrap_or(&empty);
    canvas.line(first_line(vip.vip, vip, series, theme, canvas.width()));
    canvas.line(what_goes_on(vip));
}

fn first_line<'a>(
    address: IpAddr,
    vip: &VipTick,
    series: &Series,
    theme: &Theme,
    width: usize,
) -> Line<'a> {
    let (half, most) = percentiles(series, theme);
    let latency = format!("  shares: {}  LOCK p50 {half} p99 {most} ", vip.shares);
    let address = address.to_string();
    let used = address.len() + latency.len();
    let history = sparkline(series, width.saturating_sub(used).min(HISTORY), theme);
    Line::from(vec![
        Span::styled(address, theme.bold()),
        Span::raw(latency),
        Span::styled(history, Style::new()),
    ])
}

/// The VIP's grace, or what was counted since the watch began.
pub(super) fn what_goes_on(vip: &VipTick) -> String {
    if let Some(window) = &vip.window {
        let when = match window.open {
            true => format!("grace: {} s left", window.left_ms.div_ceil(1000)),
            false => "grace ended".to_owned(),
        };
        let lockd = &window.lockd;
        return format!(
            "{when}; {} reclaimed, {} new refused, {} failed, violations: {}",
            lockd.reclaimed,
            lockd.refused,
            lockd.reclaims_failed + lockd.reclaims_refused,
            lockd.violations
        );
    }
    let counters = &vip.counters;
    let released: Vec<String> = (causes(&counters.released).into_iter())
        .filter(|(_, owners)| *owners > 0)
        .map(|(cause, owners)| format!("{owners} {cause}"))
        .collect();
    let released = match released.is_empty() {
        true => "0 released by lockd".to_owned(),
        false => format!("released: {}", released.join(", ")),
    };
    format!(
        "{} granted, {} unlocked, {} denied, {} blocked, {released}",
        counters.grants(),
        counters.unlocked,
        counters.denied + counters.denied_grace,
        counters.blocked
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_screens_show_more() {
        let narrow = Columns::for_width(80, 9);
        assert!(!narrow.latency && narrow.nfs4 && !narrow.shares && narrow.vip == 9);
        let columns = Columns::for_width(100, 15);
        assert!(columns.latency && columns.nfs4);
        let wide = Columns::for_width(130, 15);
        assert!(wide.latency && wide.nfs4 && wide.shares && wide.history >= 10);
    }

    #[test]
    fn an_ipv4_address_is_whole_on_80_cells() {
        assert_eq!(Columns::for_width(80, 15).vip, 15);
        assert_eq!(Columns::for_width(80, 39).vip, 19);
        assert_eq!(Columns::for_width(3, 39).vip, 0);
    }
}
