//! The reader: a thread of one connection that reads while futures wait for answers.
//!
//! It is started by the first future that has to wait; blocking callers do without it.

use std::io;
use std::sync::Arc;

use crate::link::{Link, SLICE};
use crate::threads;

/// Starts the reader of a connection. It ends with the connection.
pub(crate) fn start(link: Arc<Link>) -> io::Result<()> {
    threads::spawn("reeld-reader", move || {
        while link.await_reader_turn() {
            link.take_turn(SLICE);
        }
    })?;
    Ok(())
}
