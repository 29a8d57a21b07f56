"""The layouts of published weights: names, which model a file holds, ImageNet backbones."""
