//! Whatever is pressed and however small the terminal: nothing panics.

use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::ticks::samples as ticks;
use crate::ui::draw::{Theme, draw};
use crate::ui::keys::Key;
use crate::ui::state::{App, Effect, Message, Pane};

#[derive(Clone, Debug)]
enum Step {
    Key(Key),
    Tick(usize),
    Size(u16, u16),
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        Just(Key::Up),
        Just(Key::Down),
        Just(Key::PageUp),
        Just(Key::PageDown),
        Just(Key::Home),
        Just(Key::End),
        Just(Key::Enter),
        Just(Key::Escape),
        Just(Key::Backspace),
        prop::sample::select(
            &[
                'j', 'k', '/', 's', 'f', 'e', '?', ' ', '+', '.', '7', 'm', 'ü'
            ][..]
        )
        .prop_map(Key::Char),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => key().prop_map(Step::Key),
        1 => (0..6usize).prop_map(Step::Tick),
        1 => (0..140u16, 0..50u16).prop_map(|(width, height)| Step::Size(width, height)),
        1 => (0..4u16, 0..4u16).prop_map(|(width, height)| Step::Size(width, height)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_panics(steps in prop::collection::vec(step(), 1..60), ascii: bool) {
        let mut app = App::default();
        let theme = Theme { colour: true, ascii };
        let mut size = (80, 24);
        for step in steps {
            match step {
                Step::Key(key) => {
                    app.update(Message::Key(key));
                }
                Step::Size(width, height) => size = (width, height),
                Step::Tick(which) => {
                    let tick = [
                        ticks::empty(),
                        ticks::one_vip(),
                        ticks::in_grace(),
                        ticks::violation(),
                        ticks::many(30),
                        ticks::long_names(),
                    ][which].clone();
                    app.update(Message::Tick(Box::new(tick)));
                }
            }
            draw(&app, &theme, &mut Buffer::empty(Rect::new(0, 0, size.0, size.1)));
        }
    }
}

#[test]
fn the_way_in_and_back() {
    let mut app = App::default();
    app.update(Message::Tick(Box::new(ticks::in_grace())));
    let vip = ticks::in_grace().vips[0].vip;
    let mut press = |key| app.update(Message::Key(key));
    assert_eq!(press(Key::Enter), Some(Effect::Open(Some(vip))));
    assert_eq!(press(Key::Char('e')), None);
    // The newest event is one of the VIP.
    assert_eq!(press(Key::Enter), Some(Effect::Open(Some(vip))));
    assert_eq!(press(Key::Escape), Some(Effect::Open(None)));
    assert_eq!(press(Key::Escape), None);
    assert_eq!(press(Key::Char('q')), Some(Effect::Quit));
    assert_eq!(app.pane(), Pane::Overview);
}

#[test]
fn letters_are_letters_while_a_filter_is_typed() {
    let mut app = App::default();
    let mut press = |key| app.update(Message::Key(key));
    press(Key::Char('/'));
    assert_eq!(press(Key::Char('q')), None);
    assert_eq!(press(Key::Interrupt), Some(Effect::Quit));
    press(Key::Enter);
    assert_eq!(press(Key::Char('q')), Some(Effect::Quit));
    assert_eq!(app.filter(), "q");
}
