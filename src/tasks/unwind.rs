//! Turns a panic inside a future into an error, so that a bug costs one request and not the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is dropped after a panic, so nobody sees what it left half done.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(message(payload.as_ref()))),
        }
    }
}

/// Runs `future`; a panic becomes its message.
pub(crate) async fn catch_panic<F: Future>(future: F) -> Result<F::Output, String> {
    CatchPanic(Box::pin(future)).await
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| String::from("a panic without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error() {
        let number = std::hint::black_box(3);
        assert_eq!(catch_panic(async { number }).await, Ok(3));
        let failed = catch_panic(async { assert_eq!(number, 4, "unequal") }).await;
        assert!(failed.unwrap_err().contains("unequal"));
    }
}
