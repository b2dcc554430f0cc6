//! [`PerProcess`]: a value that a forked child finds new and empty.
//!
//! What is in it is not its matter. The parent's value stays in the child's memory, untouched for ever.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value made by `T::default()` at its first use in each process.
pub(crate) struct PerProcess<T> {
    node: AtomicPtr<Node<T>>,
    owns: PhantomData<Node<T>>,
}

struct Node<T> {
    epoch: u64,
    value: T,
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        PerProcess { node: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    /// This process's value.
    pub(crate) fn get(&self) -> &T {
        let epoch = super::epoch();
        let seen = self.node.load(Ordering::Acquire);
        // SAFETY: a node is freed by `drop` alone, which needs `self` for itself.
        if let Some(node) = unsafe { seen.as_ref() }
            && node.epoch == epoch
        {
            return &node.value;
        }
        self.renew(seen, epoch)
    }

    /// Puts a fresh value in the place of the one that an ancestor made.
    #[cold]
    fn renew(&self, seen: *mut Node<T>, epoch: u64) -> &T {
        let fresh = Box::into_raw(Box::new(Node { epoch, value: T::default() }));
        let node = match self.node.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh,
            Err(others) => {
                // SAFETY: `fresh` came from `Box::into_raw` above and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                others
            }
        };
        // SAFETY: not null, since either we or another thread of this process just stored it; see `get`.
        unsafe { &(*node).value }
    }
}

impl<T: Default> Default for PerProcess<T> {
    fn default() -> Self {
        PerProcess::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let node = *self.node.get_mut();
        // SAFETY: a node is freed here alone.
        if let Some(found) = unsafe { node.as_ref() }
            && found.epoch == super::epoch()
        {
            // SAFETY: it came from `Box::into_raw` in this process, and `self` goes away with it.
            drop(unsafe { Box::from_raw(node) });
        }
    }
}

// SAFETY: it owns its value as a `Box` would.
unsafe impl<T: Send> Send for PerProcess<T> {}
// SAFETY: threads get shared references to the value, and the thread that drops it may be another one.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn all_threads_get_the_same_value() {
        let value: PerProcess<AtomicU32> = PerProcess::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| value.get().fetch_add(1, Ordering::Relaxed));
            }
        });
        assert_eq!(value.get().load(Ordering::Relaxed), 8);
    }
}
