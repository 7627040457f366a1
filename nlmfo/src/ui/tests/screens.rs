//! Whole screens as they should be. `INSTA_UPDATE=always cargo test -p nlmfo screens`
//! writes them again; look at each before it is committed.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::ticks::samples as ticks;
use crate::ticks::tick::{Server, Tick};
use crate::ui::draw::{Theme, draw};
use crate::ui::keys::Key;
use crate::ui::state::{App, Message, Playback};

const PLAIN: Theme = Theme {
    colour: false,
    ascii: false,
};
const ASCII: Theme = Theme {
    colour: false,
    ascii: true,
};
const COLOUR: Theme = Theme {
    colour: true,
    ascii: false,
};

fn app(ticks: impl IntoIterator<Item = Tick>) -> App {
    let mut app = App::default();
    for tick in ticks {
        app.update(Message::Tick(Box::new(tick)));
    }
    app
}

fn press(app: &mut App, keys: impl IntoIterator<Item = Key>) {
    for key in keys {
        app.update(Message::Key(key));
    }
}

fn typed(text: &str) -> impl Iterator<Item = Key> {
    text.chars().map(Key::Char)
}

fn cells(app: &App, theme: &Theme, width: u16, height: u16) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    draw(app, theme, &mut buffer);
    buffer
}

/// The characters alone, without the blanks at the ends of lines.
fn text(app: &App, theme: &Theme, width: u16, height: u16) -> String {
    let buffer = cells(app, theme, width, height);
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Both sizes.
macro_rules! screens {
    ($name:ident, $app:expr, $theme:expr) => {
        #[test]
        fn $name() {
            let app = $app;
            for (width, height) in [(80, 24), (120, 40)] {
                let name = format!("{}_{width}x{height}", stringify!($name));
                insta::assert_snapshot!(name, text(&app, &$theme, width, height));
            }
        }
    };
}

fn traffic(first: Tick) -> [Tick; 3] {
    let second = ticks::later(&first);
    let third = ticks::later(&second);
    [first, second, third]
}

fn opened(ticks: impl IntoIterator<Item = Tick>) -> App {
    let mut app = app(ticks);
    press(&mut app, [Key::Enter]);
    app
}

fn with_events() -> App {
    let mut app = app([ticks::one_vip(), ticks::in_grace(), ticks::violation()]);
    press(&mut app, [Key::Char('e')]);
    app
}

screens!(empty, app([ticks::empty()]), PLAIN);
screens!(one_vip, app(traffic(ticks::one_vip())), PLAIN);
screens!(thousand_vips, app(traffic(ticks::many(1_000))), PLAIN);
screens!(thousand_vips_ascii, app(traffic(ticks::many(1_000))), ASCII);
screens!(long_names, app(traffic(ticks::long_names())), PLAIN);
screens!(in_grace, app([ticks::one_vip(), ticks::in_grace()]), PLAIN);
screens!(
    violation,
    app([ticks::in_grace(), ticks::violation()]),
    PLAIN
);
screens!(vip_pane, opened(traffic(ticks::one_vip())), PLAIN);
screens!(vip_pane_ascii, opened(traffic(ticks::one_vip())), ASCII);
screens!(events_pane, with_events(), PLAIN);

#[test]
fn colours_and_reversed_rows() {
    for (width, height) in [(80, 24), (120, 40)] {
        let overview = app([ticks::one_vip(), ticks::violation()]);
        let name = format!("colour_violation_{width}x{height}");
        insta::assert_debug_snapshot!(name, cells(&overview, &COLOUR, width, height));
        let many = app(traffic(ticks::many(7)));
        let name = format!("colour_states_{width}x{height}");
        insta::assert_debug_snapshot!(name, cells(&many, &COLOUR, width, height));
    }
    let pane = opened([ticks::one_vip()]);
    insta::assert_debug_snapshot!("colour_vip_pane_80x24", cells(&pane, &COLOUR, 80, 24));
}

#[test]
fn without_colour_there_is_none() {
    for app in [app([ticks::violation()]), opened([ticks::in_grace()])] {
        let buffer = cells(&app, &PLAIN, 120, 40);
        let reset = ratatui::style::Color::Reset;
        let plain = |cell: &ratatui::buffer::Cell| cell.fg == reset && cell.bg == reset;
        assert!(buffer.content.iter().all(plain));
    }
}

#[test]
fn ascii_is_ascii_in_every_pane() {
    let mut app = app(traffic(ticks::long_names()));
    for keys in ["", "e", "?", "/ü"] {
        press(&mut app, typed(keys));
        assert!(text(&app, &ASCII, 120, 40).is_ascii(), "{keys:?}");
    }
    let mut app = opened(traffic(ticks::long_names()));
    assert!(text(&app, &ASCII, 80, 24).is_ascii());
    press(&mut app, [Key::Escape, Key::End, Key::Enter]);
    assert!(text(&app, &ASCII, 80, 24).is_ascii());
}

#[test]
fn help() {
    let mut app = app([ticks::one_vip()]);
    press(&mut app, [Key::Char('?')]);
    insta::assert_snapshot!("help_120x40", text(&app, &PLAIN, 120, 40));
    press(&mut app, [Key::End]);
    assert!(text(&app, &PLAIN, 80, 24).contains("only reads"));
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut app = app([ticks::many(20)]);
    press(&mut app, typed("/0.1"));
    let typing = text(&app, &PLAIN, 80, 24);
    assert!(
        typing.contains("/0.1") && typing.contains("Enter keep"),
        "{typing}"
    );
    press(&mut app, typed("2"));
    press(&mut app, [Key::Enter]);
    let rows = app.rows().len();
    assert_eq!(rows, 1, "10.77.0.12 alone");
    press(&mut app, [Key::Escape]);
    assert_eq!(app.rows().len(), 20);
}

#[test]
fn a_file_and_a_client_filter_vips_and_lines() {
    let mut app = app([ticks::many(3), ticks::one_vip()]);
    for (filter, lines) in [("MAIL1", 4), ("c2-a", 2), ("c1-a.mbox", 6), ("nothing", 0)] {
        press(&mut app, typed("/"));
        press(&mut app, typed(filter));
        press(&mut app, [Key::Enter]);
        assert_eq!(app.rows().len(), usize::from(lines > 0), "{filter}");
        let vip = ticks::one_vip().vips[0].vip;
        // The last one tells what found no room.
        assert_eq!(app.vip_lines(vip).len(), lines + 1, "{filter}");
        press(&mut app, [Key::Escape]);
    }
}

#[test]
fn a_frozen_screen_stays_and_then_shows_all_that_came() {
    let mut app = app([ticks::one_vip()]);
    press(&mut app, typed("f"));
    let frozen = text(&app, &PLAIN, 80, 24);
    assert!(frozen.contains("FROZEN"));
    app.update(Message::Tick(Box::new(ticks::in_grace())));
    assert_eq!(text(&app, &PLAIN, 80, 24), frozen);
    press(&mut app, typed("f"));
    assert!(text(&app, &PLAIN, 80, 24).contains("reclaiming 812/1000"));
}

#[test]
fn the_selection_stays_with_its_vip_when_the_order_changes() {
    let mut app = app([ticks::many(20)]);
    press(&mut app, typed("jj"));
    let third = app.rows()[2].vip;
    press(&mut app, typed("s"));
    let rows = app.rows();
    assert_eq!(rows[0].held, 19 * 131);
    assert_eq!(rows[app.selected(&rows)].vip, third);
}

#[test]
fn what_is_wrong_is_said() {
    let mut tick = ticks::one_vip();
    tick.server = Server::NotLoaded;
    tick.troubles = vec!["reading /proc/locks: denied".to_owned()];
    tick.pace.look_ms = 22_000;
    tick.look.exact = false;
    let shown = text(&app([tick]), &PLAIN, 120, 24);
    for words in [
        "lockd was unloaded",
        "/proc/locks: denied",
        "every 22 s",
        "changed while",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn what_stretching_does_is_whole_on_80_cells() {
    let mut tick = ticks::one_vip();
    tick.pace.look_ms = 28_300;
    tick.look.at_ms -= 5_400;
    tick.pace.cpu_percent = 4.5;
    let shown = text(&app([tick]), &PLAIN, 80, 24);
    let line = "every 1 s, locks every 28 s (5 s old), stretched, 4.5 % CPU\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn a_replay_says_so() {
    let mut app = app([ticks::one_vip()]);
    app.update(Message::Playback(Playback {
        speed: 4.0,
        paused: false,
        ended: false,
    }));
    let shown = text(&app, &PLAIN, 80, 24);
    assert!(
        shown.contains("REPLAY 4x") && shown.contains("space pause"),
        "{shown}"
    );
}
