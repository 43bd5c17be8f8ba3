# Written by tools/serving_kit.py: the served versions as an image, for kubernetes.yaml.
FROM busybox:1.37.0
COPY axion_model_i/2 /saved_models/axion_model_i/2
COPY axion_model_ii/2 /saved_models/axion_model_ii/2
COPY axion_model_iii/2 /saved_models/axion_model_iii/2
COPY axion_physical_euclid/2 /saved_models/axion_physical_euclid/2
COPY axion_physical_hst/2 /saved_models/axion_physical_hst/2
