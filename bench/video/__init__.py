"""Conv-TT-LSTM and ConvLSTM, trained alike to predict moving digits: `python bench/video`."""
