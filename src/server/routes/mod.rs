//! The handlers, by subject. Each takes a [`Context`](super::handle::Context) and gives an answer or an
//! [`ApiError`](super::error::ApiError).

pub(super) mod audio;
pub(super) mod openai;
pub(super) mod pages;
pub(super) mod request;
pub(super) mod status;
pub(super) mod synthesis;
pub(super) mod tasks;
pub(super) mod voices;

pub(super) use pages::OPENAPI;
