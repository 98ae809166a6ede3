//! Every weight of an ONNX file that opens can be read.
#![no_main]

use cosyvoice::checkpoint::{Bytes, names};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::Owned(bytes.to_vec());
    let describe = |graph: &cosyvoice::checkpoint::onnx::Graph<'_>, _: &_| {
        for node in &graph.nodes {
            for value in node.inputs.iter().chain(&node.outputs) {
                let _ = graph.constant(value);
            }
        }
        Ok(())
    };
    if let Ok((file, ())) = names::read("m.onnx", bytes, describe) {
        for name in file.entries().keys() {
            let _ = file.peek(name);
        }
    }
});
