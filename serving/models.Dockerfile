# Written by tools/serving_kit.py: the served versions as an image, for kubernetes.yaml.
FROM busybox:1.37.0
COPY axion_model_i/1 /saved_models/axion_model_i/1
COPY axion_model_ii/1 /saved_models/axion_model_ii/1
COPY axion_model_iii/1 /saved_models/axion_model_iii/1
COPY axion_physical_euclid/1 /saved_models/axion_physical_euclid/1
COPY axion_physical_hst/1 /saved_models/axion_physical_hst/1
