//! [`Connection`]: a link that is closed when nobody wants anything of it any more.
//!
//! Frames do not keep a connection open: what they show stays readable without it.

use std::ops::Deref;
use std::sync::Arc;

use crate::calls::Closed;
use crate::link::Link;

/// Closes its link when it is dropped.
pub(crate) struct Connection {
    link: Arc<Link>,
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>) -> Connection {
        Connection { link }
    }
}

impl Deref for Connection {
    type Target = Arc<Link>;

    fn deref(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.close(&Closed::Lost("the client was dropped".into()));
    }
}
