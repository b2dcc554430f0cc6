//! [`Own`]: a value that only the process that made it may touch.
//!
//! Unlike with `PerProcess`, a forked child gets no value of its own.

use std::mem::ManuallyDrop;

/// A value of one process. In a forked child it is neither seen nor dropped.
pub(crate) struct Own<T> {
    epoch: u64,
    value: ManuallyDrop<T>,
}

impl<T> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Own { epoch: super::epoch(), value: ManuallyDrop::new(value) }
    }

    /// The value; none in a child of the process that made it.
    pub(crate) fn get(&self) -> Option<&T> {
        (self.epoch == super::epoch()).then(|| &*self.value)
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.epoch == super::epoch() {
            // SAFETY: dropped here alone, and never used after that.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}
