"""What commands start: training set-up, objectives of each stage, chat sessions, video embedding."""
