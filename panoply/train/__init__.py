"""What is fitted: objectives, debiasing, losses, fixed weights. One function per equation."""
