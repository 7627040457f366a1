//! Notifications of a supervised server to systemd.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;

/// Sends notifications to systemd on a thread of its own, so that supervision does not wait for
/// systemd.
pub struct Systemd(SyncSender<String>);

impl Systemd {
    pub fn new() -> Self {
        let (sender, told) = sync_channel::<String>(16);
        thread::spawn(move || {
            for text in told {
                let _ = sd_notify::notify(&[NotifyState::Custom(&text)]);
            }
        });
        Systemd(sender)
    }

    pub fn tell(&self, text: impl Into<String>) {
        let _ = self.0.try_send(text.into());
    }

    pub fn status(&self, text: &str) {
        // A status is one line.
        self.tell(format!("STATUS={}", text.replace('\n', " ")));
    }
}
