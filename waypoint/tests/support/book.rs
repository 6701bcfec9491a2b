//! Where a waypoint of the tests asks for names of its clients.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::mpsc;
use waypoint::lookups::Directory;

/// What a test says to a name that is asked for.
pub type Answer = Box<dyn Fn()>;

/// Where names are asked for.
pub struct Book {
    pub ask: mpsc::UnboundedSender<String>,
    pub answer: Rc<RefCell<Option<Answer>>>,
}

impl Directory for Book {
    fn answers(&self) -> bool {
        self.answer.borrow().is_some()
    }

    fn ask(&self, name: &str) {
        // The test may be over.
        let _ = self.ask.send(name.to_owned());
        if let Some(answer) = &*self.answer.borrow() {
            answer();
        }
    }

    fn forget(&self, _name: &str) {}
}
