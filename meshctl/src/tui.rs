//! `meshctl top` on a terminal: keys in, frames out, and the terminal as it was in the end.

pub(crate) mod state;
mod view;

use std::io::{self, Stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use state::State;
pub(crate) use view::{gpu_cells, host_cells};

/// How long a look for a key takes at most: so long the end of the program waits for it.
const KEY_WAIT: Duration = Duration::from_millis(50);
/// Keys that wait to be acted on; more are lost.
const N_KEYS: usize = 16;

/// What a person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    /// Sort by the next column.
    Sort,
    /// Draw again: the terminal has another size.
    Redraw,
}

/// The terminal while it is ours. It is given back when this is dropped.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    is_over: Arc<AtomicBool>,
    keys: mpsc::Receiver<Key>,
    _reader: JoinHandle<()>,
}

impl Screen {
    /// Takes the terminal over.
    pub(crate) fn open() -> io::Result<Self> {
        enable_raw_mode()?;
        let mut stdout = io::stdout();
        let opened = execute!(stdout, EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout)));
        let terminal = opened.inspect_err(|_| give_back())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (sender, keys) = mpsc::channel(N_KEYS);
        let ends = Arc::clone(&is_over);
        let reader = tokio::task::spawn_blocking(move || read_keys(&sender, &ends));
        Ok(Self {
            terminal,
            is_over,
            keys,
            _reader: reader,
        })
    }

    pub(crate) fn draw(&mut self, state: &State) -> io::Result<()> {
        self.terminal
            .draw(|frame| view::draw(frame, state))
            .map(drop)
    }

    /// The next key that means something.
    pub(crate) async fn key(&mut self) -> Key {
        // Without a reader nobody could leave any more.
        self.keys.recv().await.unwrap_or(Key::Quit)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        give_back();
    }
}

/// Best effort: there is nobody to tell.
fn give_back() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

fn read_keys(sender: &mpsc::Sender<Key>, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) && !sender.is_closed() {
        match event::poll(KEY_WAIT) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(_) => return,
        }
        let Ok(event) = event::read() else { return };
        if let Some(key) = meaning(&event) {
            // A full queue means that the same key waits already.
            let _ = sender.try_send(key);
        }
    }
}

fn meaning(event: &Event) -> Option<Key> {
    if matches!(event, Event::Resize(_, _)) {
        return Some(Key::Redraw);
    }
    let key = event.as_key_press_event()?;
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    if key.code == KeyCode::Esc
        || key.code == KeyCode::Char('q')
        || (is_control && key.code == KeyCode::Char('c'))
    {
        return Some(Key::Quit);
    }
    (key.code == KeyCode::Char('s')).then_some(Key::Sort)
}

#[cfg(test)]
mod tests;
